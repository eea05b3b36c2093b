"""The Triton kernel of :mod:`sft.engine.float8_casts`; importing this needs Triton, which torch brings on CUDA."""

import triton
import triton.language as tl


# No types at its parameters: Triton compiles the signature too, and knows constexpr alone.
@triton.jit  # type: ignore[untyped-decorator]
def cast_tile(  # type: ignore[no-untyped-def]
    matrix,
    scale,
    narrow,
    turned,
    rows,
    columns,
    MOST: tl.constexpr,
    STRAIGHT: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
):
    """One tile: read, scaled, cut off at the type's largest value, written as it lies (if STRAIGHT) and turned."""
    row = (tl.program_id(0) * TILE_ROWS + tl.arange(0, TILE_ROWS)).to(tl.int64)[:, None]
    column = (tl.program_id(1) * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)).to(tl.int64)[None, :]
    inside = (row < rows) & (column < columns)
    value = tl.load(matrix + row * columns + column, mask=inside, other=0.0).to(tl.float32) / tl.load(scale)
    out = tl.clamp(value, -MOST, MOST).to(turned.dtype.element_ty)
    if STRAIGHT:
        tl.store(narrow + row * columns + column, out, mask=inside)
    across = tl.trans(out)
    row_t = (tl.program_id(0) * TILE_ROWS + tl.arange(0, TILE_ROWS)).to(tl.int64)[None, :]
    column_t = (tl.program_id(1) * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)).to(tl.int64)[:, None]
    tl.store(turned + column_t * rows + row_t, across, mask=(row_t < rows) & (column_t < columns))
