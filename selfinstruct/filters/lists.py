"""Words and phrases that the filters look for by default, English and Chinese. A recipe replaces or extends them."""

from __future__ import annotations

BLACKLIST = (
    # Self-Instruct's list, and Alpaca's additions: what a model that only reads and writes text cannot do
    *("image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw", "plot", "go to"),
    *("video", "audio", "music", "flowchart", "diagram"),
    *(
        "图片",
        "图像",
        "照片",
        "视频",
        "音频",
        "录音",
        "流程图",
        "示意图",
        "截图",
        "画一幅",
        "画一张",
        "画出",
        "绘制",
        "点击链接",
    ),
)
PROGRAM = ("write a program", "编写一个程序", "写一个程序", "编写程序")
# Behind "write a program": what makes it the program of an evening, or a trade, and no code.
PROGRAM_COMPOUNDS = (
    *("note", "notes", "guide", "booklet", "book", "brochure", "leaflet", "description", "proposal", "evaluation", "director"),
    *("manager", "coordinator", "schedule", "of events", "of music", "of songs", "of works", "of activities", "of exercises"),
    *("员", "正义", "性", "设计课", "设计比赛", "设计竞赛"),
)
EVENTS = (
    *("anniversary", "assembly", "ball", "banquet", "ceremony", "concert", "conference", "convention", "dinner", "event"),
    *(
        "evening",
        "exhibition",
        "fair",
        "festival",
        "fundraiser",
        "funeral",
        "gala",
        "graduation",
        "memorial",
        "opera",
        "parade",
    ),
    *("party", "performance", "play", "production", "recital", "retreat", "reunion", "seminar", "show", "symposium", "wedding"),
)
PLACEHOLDERS = ("<nooutput>", "<no output>", "nooutput", "<noinput>", "n/a", "无输出")
REFUSALS = ("i do not have personal opinions", "i don't have personal opinions")
"""Refused wherever they stand in the output, besides what speaks as a model (:mod:`sft.text.model_speech`)."""
REFUSAL_OPENINGS = (
    *(
        "i'm sorry, but i can",
        "i am sorry, but i can",
        "i'm sorry, i can",
        "sorry, but i can",
        "sorry, i can't",
        "sorry, i cannot",
        "i apologize, but i can",
    ),
    *(
        "i'm unable to",
        "i am unable to",
        "i cannot fulfill",
        "i can't fulfill",
        "i cannot assist",
        "i can't assist",
        "i cannot help with",
    ),
    *("i'm afraid i can", "unfortunately, i can", "it is not possible for me to"),
    *(
        "抱歉，我无法",
        "抱歉，我不能",
        "对不起，我无法",
        "对不起，我不能",
        "很抱歉，我无法",
        "很抱歉，我不能",
        "很抱歉，作为",
        "抱歉，作为",
        "对不起，作为",
        "非常抱歉，我无法",
        "很遗憾，我无法",
    ),
    *("我无法回答", "我不能回答", "我无法提供", "我无法完成"),
)
"""Refused only where the output begins with them."""
