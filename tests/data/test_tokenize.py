"""Ids and masks: those of the tokenizer on the whole text, for every template and every kind of tokenizer."""

from __future__ import annotations

import copy
from itertools import accumulate, pairwise

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sft.data import text_encoder
from sft.data.conversation import Conversation, Drop, Turn
from sft.data.stand_in import stand_in_tokenizer
from sft.data.template import ChatTemplate, builtin_names, load_template
from sft.data.tokenize import RowEncoder, Tokenized
from sft.errors import TokenizerError
from sft.model.tokenizer import repair_tokens
from tests.builders import TOKENIZERS, byte_level, sentencepiece_like
from tests.templates import stop_of


@pytest.fixture(autouse=True, params=["tokenizer", "words"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every law holds for both ways to ids."""
    if request.param == "words":
        monkeypatch.setattr(text_encoder, "INTERNED_FROM", 0)


def talk(*texts: str, system: str | None = None, train: dict[int, bool] | None = None) -> Conversation:
    """User and assistant by turns; ``train`` by index of the text."""
    head = () if system is None else (Turn("system", system),)
    turns = (Turn("assistant" if i % 2 else "user", text, (train or {}).get(i)) for i, text in enumerate(texts))
    return Conversation("row", (*head, *turns), "source")


def made(kind: str, template: ChatTemplate, train_on: str | None = None) -> tuple[RowEncoder, PreTrainedTokenizerFast]:
    tokenizer = copy.deepcopy(TOKENIZERS[kind]())
    repair_tokens(tokenizer, template)
    return RowEncoder(tokenizer, template, train_on or ("last" if template.only_last else "assistant")), tokenizer


def kept(encoder: RowEncoder, conversation: Conversation) -> Tokenized:
    (row,) = encoder.encode([conversation])
    assert isinstance(row, Tokenized), row
    return row


def dropped(encoder: RowEncoder, conversation: Conversation) -> Drop:
    (row,) = encoder.encode([conversation])
    assert isinstance(row, Drop), row
    assert row.id == conversation.id
    return row


def learnt(row: Tokenized, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """The runs of learnt tokens, decoded by the user's tokenizer."""
    edges = [0, *(i for i in range(1, len(row.ids)) if row.mask[i] != row.mask[i - 1]), len(row.ids)]
    runs = [(a, b) for a, b in pairwise(edges) if row.mask[a]]
    return [tokenizer.decode(row.ids[a:b].tolist(), skip_special_tokens=False) for a, b in runs]


# --- our templates, three tokenizers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", builtin_names())
def test_ids_mask_prompts_and_stops_are_exact(name: str, kind: str) -> None:
    template = load_template(name)
    encoder, tokenizer = made(kind, template)
    texts = ("Hello there", "Hi 🎉 春天", "  two\n", "def f(x):\n    return x + 1")[: None if template.multi_turn else 2]
    for system in (None, "Be brief.") if "system" in template.roles else (None,):
        conversation = talk(*texts, system=system)
        rendered = encoder.renderer.render(conversation)
        if kind == "colon_crossing" and "Red, green" in CROSSED[name]:
            assert dropped(encoder, conversation).reason == "prompt_not_prefix"
            continue
        row = kept(encoder, conversation)
        assert row.ids.tolist() == tokenizer(rendered.text, add_special_tokens=False)["input_ids"]
        taught = row.turns[-1:] if template.only_last else row.turns
        assert sorted(set(range(len(row.ids))) - {i for a, b in taught for i in range(a, b)}) == [
            i for i, yes in enumerate(row.mask) if not yes
        ]
        wanted = [rendered.text[a:b] for a, b in rendered.spans][-len(taught) :]
        assert learnt(row, tokenizer) == [text.removeprefix(" ") if kind == "sentencepiece_like" else text for text in wanted]
        ids, strings = encoder.stops()
        for (first, stop), index in zip(row.turns, range(len(conversation.turns) - len(texts) + 1, 99, 2), strict=False):
            before = Conversation("row", conversation.turns[:index], "source")
            assert row.ids[:first].tolist() == encoder.prompt_ids(before)
            if (first, stop) in taught:
                text = tokenizer.decode(row.ids[first:stop].tolist())
                token = stop_of(template, tokenizer.eos_token, None if (first, stop) == row.turns[-1] else "user")
                assert row.ids[stop - 1] in ids or strings
                assert text.endswith(strings[0]) if strings else row.ids[stop - 1] == tokenizer.convert_tokens_to_ids(token)


ANSWERS = ("Red, green", "Ein Test.", "I", " yes", "\nx", "zebra")
CROSSED: dict[
    str, set[str]
] = {  # by template: what its header's last characters merge with, in a tokenizer that merges over every border
    "alpaca": {" yes"},
    "alpaca_newline": {"\nx"},
    "alpaca_short": {"\nx"},
    "chatml": {"\nx"},
    "chinese_vicuna_chat": {"Ein Test.", "I", " yes", "\nx"},
    "llama2": {"Red, green", "Ein Test.", "I", "\nx", "zebra"},
    "moss": set(ANSWERS),
    "openbuddy": set(ANSWERS),
    "plain": set(),
    **{name: set() for name in ("baichuan", "baichuan2", "chatglm2", "chatglm3", "moss_plugin")},
    "openbuddy_v21": set(),
    "openbuddy_think": {" yes"},
    "openbuddy_nothink": {" yes"},
    "vicuna_v0": set(ANSWERS),
    "vicuna_v1.1": set(ANSWERS),
}


@pytest.mark.parametrize("name", builtin_names())
def test_exactly_the_answers_that_a_merge_joins_to_the_header_are_dropped(name: str) -> None:
    encoder, _ = made("colon_crossing", load_template(name))
    rows = encoder.encode([talk("q", answer) for answer in ANSWERS])
    found = {answer: row.reason for answer, row in zip(ANSWERS, rows, strict=True) if isinstance(row, Drop)}
    assert found == dict.fromkeys(CROSSED[name], "prompt_not_prefix")


def test_a_merge_over_the_border_names_both_sides_and_the_cure() -> None:
    encoder, _ = made("colon_crossing", load_template("alpaca"))
    drop = dropped(encoder, talk("q", " yes"))
    assert drop.detail.startswith(
        "one token holds ':', the end of the prompt, and ' ', the start of the answer; the ids of the "
    )
    assert drop.detail.endswith("or the tokenizer that the template was made for")
    assert "behind a special token" in drop.detail


@pytest.mark.parametrize(
    ("end", "answer", "reason", "says"),
    [
        (
            "",
            "\nb",
            "prompt_not_prefix",
            r"one token holds 'A:', the end of the prompt, and '\n', the start of the answer; the ids",
        ),
        (
            "\n\n\n",
            "b",
            "prompt_not_prefix",
            "the end of the prompt has other ids where an answer follows; the ids of the inference",
        ),
        ("\n\n\n", "\n\nb", "prompt_not_prefix", r"one token holds '\n\n', the end of the prompt, and '\n', the start of the"),
        ("\n\n\n", "\nb", "", ""),
        ("\n", "b", "", ""),
        ("", "b", "", ""),
        ("<|im_start|>", "\nb", "", ""),
    ],
)
def test_a_foreign_template_whose_prompt_ends_inside_a_token(end: str, answer: str, reason: str, says: str) -> None:
    """GPT-2's word rule keeps a run of newlines together, but leaves the last one to the word behind it."""
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ĊĊ", "ĊĊĊ", "A:", "A:Ċ"]
    merges = [("Ċ", "Ċ"), ("ĊĊ", "Ċ"), ("A", ":"), ("A:", "Ċ")]
    backend = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(alphabet)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"A:\n?|\s+(?!\S)|\s+|[^\sA]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in ("<|endoftext|>", "<|im_start|>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    source = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}"
        f"{{% else %}}{{{{ 'A:{end}' + m['content'] + eos_token }}}}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ 'A:{end}' }}}}{{% endif %}}"
    ).replace("\n", "\\n")
    encoder = RowEncoder(tokenizer, load_template("tokenizer", tokenizer_source=source))
    (row,) = encoder.encode([talk("q", answer)])
    if not reason:
        assert isinstance(row, Tokenized)
        assert row.ids[: row.turns[0][0]].tolist() == encoder.prompt_ids(talk("q"))
        assert learnt(row, tokenizer) == [answer + "<|endoftext|>"]
        return
    assert isinstance(row, Drop)
    assert row.reason == reason
    assert row.detail.startswith(says)


def test_a_row_whose_only_learnt_token_is_its_first_is_dropped() -> None:
    encoder, _ = made("byte_level", load_template("plain"))  # writes no BOS
    assert dropped(encoder, talk("", "")).reason == "nothing_trained"
    assert kept(encoder, talk("", "ab" * 9)).mask.tolist()[:2] == [False, True]


def test_stops() -> None:
    expected: dict[str, tuple[tuple[str, ...], list[str]]] = {
        "chatml": (("<|im_end|>", "</s>"), []),
        "vicuna_v0": (("</s>",), ["\n###"]),
        "moss": (("<eom>", "</s>"), []),
        "moss_plugin": (("<eom>", "</s>", "<eoc>"), []),
        "chatglm3": (("</s>", "<|user|>", "<|observation|>"), []),
        "baichuan": (("</s>", "<reserved_102>"), []),
        "baichuan2": (("</s>", "<reserved_106>"), []),
        **dict.fromkeys(("openbuddy_v21", "openbuddy_think", "openbuddy_nothink"), (("<|end|>", "</s>"), [])),
    }
    for name in builtin_names():
        encoder, tokenizer = made("sentencepiece_like", load_template(name))
        tokens, strings = expected.get(name, (("</s>",), []))
        wanted = tokenizer.convert_tokens_to_ids(list(tokens))
        assert encoder.stops() == (wanted, strings)


# --- what is learnt ---------------------------------------------------------------------------------------------------

POLICIES = [
    ("assistant", {}, [1, 3, 5]),
    ("assistant", {1: False}, [3, 5]),
    ("last", {}, [5]),
    ("last", {1: True}, [1, 5]),
    ("last", {5: False, 3: True}, [3]),
    ("all", {}, [0, 1, 2, 3, 4, 5]),
    ("all", {3: False}, [0, 1, 2, 4, 5]),
    ("all", {3: True, 5: False}, [0, 1, 2, 3, 4]),
    ("all", {2: False}, [0, 1, 3, 4, 5]),
    ("all", {0: False, 1: False, 2: False, 3: False, 4: False, 5: False}, []),
]


@pytest.mark.parametrize(("train_on", "train", "taught"), POLICIES)
def test_policies_and_overrides(train_on: str, train: dict[int, bool], taught: list[int]) -> None:
    encoder, tokenizer = made("byte_level", load_template("chatml"), train_on)
    row = kept(encoder, talk("aa", "bb", "cc", "dd", "ee", "ff", train=train))
    text = tokenizer.decode(row.ids.tolist(), skip_special_tokens=False)
    pieces = [tokenizer.decode([token], skip_special_tokens=False) for token in row.ids.tolist()]
    offsets = [0, *accumulate(map(len, pieces))]
    for i, content in enumerate(("aa", "bb", "cc", "dd", "ee", "ff")):
        span = (at := text.index(content + "<|im_end|>"), at + len(content))
        inside = {bool(row.mask[k]) for k in range(len(pieces)) if offsets[k] < span[1] and offsets[k + 1] > span[0]}
        assert inside == {i in taught}
        ends = next(k for k in range(len(pieces)) if offsets[k] == span[1])
        # The stop belongs to its answer; other turns' end token is the template's, learnt under `all` alone.
        assert bool(row.mask[ends]) is (i in taught if i % 2 else train_on == "all")
    assert not row.mask[0]


def test_a_muted_turn_takes_the_tokens_along_that_hold_a_part_of_it() -> None:
    encoder, tokenizer = made("colon_crossing", load_template("plain"), "all")
    row = kept(encoder, talk("### Response:", "q", train={0: False}))
    assert learnt(row, tokenizer) == ["q</s>"]


@pytest.mark.parametrize(
    ("train_on", "train", "says"),
    [
        ("last", {3: False}, "template.train_on is last, and the last assistant turn of this row is marked train: false"),
        (
            "assistant",
            {1: False, 3: False},
            "train_on is assistant, and every assistant turn of this row is marked train: false",
        ),
    ],
)
def test_nothing_trained_says_why(train_on: str, train: dict[int, bool], says: str) -> None:
    encoder, _ = made("byte_level", load_template("chatml"), train_on)
    drop = dropped(encoder, talk("a", "b", "c", "d", train=train))
    assert drop.reason == "nothing_trained"
    assert says in drop.detail


@pytest.mark.parametrize("train_on", ["assistant", "all"])
def test_a_template_that_stops_once_takes_only_last(train_on: str) -> None:
    with pytest.raises(TokenizerError, match=r"chinese_vicuna_chat ends only the last answer .*; set template.train_on: last"):
        RowEncoder(sentencepiece_like(), load_template("chinese_vicuna_chat"), train_on)
    encoder, _ = made("sentencepiece_like", load_template("chinese_vicuna_chat"))
    drop = dropped(encoder, talk("a", "spelt </s>", "c", "d", train={1: True}))  # a text that spells the stop is none
    assert (drop.reason, drop.detail) == ("stop_not_rendered", "answer 0 does not end with its stop token '</s>'")


# --- tokenizers that cannot serve -------------------------------------------------------------------------------------


def test_missing_template_tokens_are_named() -> None:
    with pytest.raises(TokenizerError, match=r"chatml writes <\|im_start\|>, <\|im_end\|>, which this tokenizer would cut"):
        RowEncoder(sentencepiece_like(), load_template("chatml"))


@pytest.mark.parametrize("token", ["ab", "a"])
def test_a_control_token_that_ordinary_text_needs_is_refused(token: str) -> None:
    backend = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    backend.add_special_tokens([token])
    with pytest.raises(TokenizerError, match=f"the special token '{token}' is also a piece that ordinary text is made of"):
        stand_in_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), [token])


def test_a_control_token_that_is_one_letter_outside_the_vocabulary_serves() -> None:
    alphabet = {piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("☃", special=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="☃")
    row = kept(RowEncoder(tokenizer, load_template("plain")), talk("☃", "a☃"))
    assert [i for i, token in enumerate(row.ids) if token == 256] == [7]  # 3 bytes, 1 letter, 3 bytes, the stop
    with pytest.raises(TokenizerError, match="the special token 'a' is also a piece"):
        stand_in_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), ["a"])


def test_a_byte_piece_is_no_control_token() -> None:
    tokenizer = copy.deepcopy(sentencepiece_like())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<0x0A>"]})
    with pytest.raises(TokenizerError, match="the special token '<0x0A>' is also a piece"):
        RowEncoder(tokenizer, load_template("plain"))


def test_what_others_use_is_public() -> None:
    encoder = RowEncoder(byte_level(), load_template("chatml"))
    assert encoder.backend is encoder._backend
    assert encoder.stand_ins is encoder._names
    assert set(encoder.stand_ins) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}


# --- templates of tokenizers ------------------------------------------------------------------------------------------

HEAD = "{{ '<|im_start|>' + m['role'] + '\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"


def turns(answer: str, other: str = "{{ m['content'] + '<|im_end|>\n' }}") -> str:
    return f"{{% for m in messages %}}{HEAD}{{% if m['role'] == 'assistant' %}}{answer}{{% else %}}{other}{{% endif %}}{{% endfor %}}{PROMPT}"


UNMARKED = turns("{{ m['content'] + '<|im_end|>\n' }}")
MARKED = turns("{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}")
TRIMS = turns("{{ m['content'] | trim + '<|im_end|>\n' }}", "{{ m['content'] | trim + '<|im_end|>\n' }}")
TRIMS_MARKED = turns("{% generation %}{{ m['content'] | trim + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}")
THINKS = "{% set c = m['content'] if loop.last else m['content'].split('</think>')[-1] %}"
STRIPS = turns(THINKS + "{{ c + '<|im_end|>\n' }}")
STRIPS_MARKED = turns(THINKS + "{% generation %}{{ c + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}")
OUTSIDE = turns("{% generation %}{{ m['content'] }}{% endgeneration %}{{ '<|im_end|>\n' }}")
NEVER = turns("{{ m['content'] + '\n' }}")
NEVER_MARKED = turns("{% generation %}{{ m['content'] }}{% endgeneration %}{{ '\n' }}")


def own(source: str, train_on: str = "assistant", thinks: bool = False) -> tuple[RowEncoder, PreTrainedTokenizerFast]:
    tokenizer = copy.deepcopy(byte_level())
    if thinks:  # as Qwen3 has them: added, not special
        tokenizer.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    return RowEncoder(tokenizer, load_template("tokenizer", tokenizer_source=source), train_on), tokenizer


@pytest.mark.parametrize("source", [UNMARKED, MARKED], ids=["unmarked", "marked"])
def test_a_tokenizers_own_chatml_gives_the_rows_of_ours(source: str) -> None:
    rows = [talk("a", " b", "c<|im_end|>", "d<", system="s"), talk("a", "")]
    for train_on in ("assistant", "last", "all"):
        encoder, tokenizer = own(source, train_on)
        ours = RowEncoder(tokenizer, load_template("chatml"), train_on)
        for conversation in rows:
            got, wanted = kept(encoder, conversation), kept(ours, conversation)
            assert got.ids.tolist() == wanted.ids.tolist()
            assert got.mask.tolist() == wanted.mask.tolist()
            assert got.turns == wanted.turns


@pytest.mark.parametrize("source", [TRIMS, TRIMS_MARKED], ids=["unmarked", "marked"])
def test_a_template_that_trims_teaches_the_trimmed_answer(source: str) -> None:
    encoder, tokenizer = own(source)
    row = kept(encoder, talk(" a ", " x<|im_end|> \n", "c", "\n\nd<"))
    assert learnt(row, tokenizer) == ["x<|im_end|><|im_end|>", "d<<|im_end|>"]
    assert [len(row.ids[a:b][row.ids[a:b] == tokenizer.convert_tokens_to_ids("<|im_end|>")]) for a, b in row.turns] == [1, 1]


@pytest.mark.parametrize("thinks", [False, True], ids=["text", "tokens"])
@pytest.mark.parametrize("source", [STRIPS, STRIPS_MARKED], ids=["unmarked", "marked"])
def test_a_template_that_strips_earlier_thinking_is_refused_where_it_does(source: str, thinks: bool) -> None:
    encoder, tokenizer = own(source, thinks=thinks)
    drop = dropped(encoder, talk("a", "<think>t</think>b", "c", "d"))
    assert drop.reason == "prompt_not_prefix"
    assert "training and inference" in drop.detail
    row = kept(encoder, talk("a", "b", "c", "<think>t</think>d"))
    assert learnt(row, tokenizer) == ["b<|im_end|>", "<think>t</think>d<|im_end|>"]


@pytest.mark.parametrize("source", [OUTSIDE, NEVER, NEVER_MARKED], ids=["outside", "never", "never marked"])
@pytest.mark.parametrize("answer", ["b", "b<|im_end|>", "b<|endoftext|>"])
def test_an_answer_without_a_learnt_stop_is_refused(source: str, answer: str) -> None:
    encoder, _ = own(source)
    assert dropped(encoder, talk("a", answer)).reason == "stop_not_rendered"
    assert dropped(encoder, talk("a", answer, "c", "d")).reason == "stop_not_rendered"
