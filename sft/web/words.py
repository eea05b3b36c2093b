"""What the page says, in English and in Chinese."""

from __future__ import annotations

from typing import Literal, get_args

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = get_args(Language)

WORDS: dict[str, tuple[str, str]] = {
    "title": ("Vicugna", "Vicugna"),
    "html_lang": ("en", "zh-CN"),
    "other": ("[中文](../zh/)", "[English](../en/)"),
    "chat": ("Chat", "对话"),
    "arena": ("Side by side", "双盲对比"),
    "model": ("Model", "模型"),
    "refresh": ("Refresh", "刷新"),
    "settings": ("System prompt and settings", "系统提示词与设置"),
    "system": ("System prompt", "系统提示词"),
    "temperature": ("Temperature", "温度"),
    "temperature_info": ("0 always takes the likeliest token", "0 表示总取概率最大的词元"),
    "max_tokens": ("Longest answer, in tokens", "回答的最大长度（词元）"),
    "as_written": ("Show text as written, without formatting", "显示原文，不渲染格式"),
    "dialogue": ("Dialogue", "对话"),
    "left": ("Left model", "左侧模型"),
    "right": ("Right model", "右侧模型"),
    "message": ("Message", "消息"),
    "placeholder": ("Enter sends, Shift+Enter begins a new line", "回车发送，Shift+回车换行"),
    "notice": ("Notice", "提示"),
    "send": ("Send", "发送"),
    "stop": ("Stop", "停止"),
    "regenerate": ("Regenerate", "重新生成"),
    "undo": ("Undo", "撤销"),
    "new": ("New dialogue", "新对话"),
    "new_round": ("New round", "新一轮"),
    "save": ("Save as training row", "存为训练数据"),
    "model_a": ("Left is better", "左边更好"),
    "model_b": ("Right is better", "右边更好"),
    "tie": ("Tie", "平局"),
    "tie (bothbad)": ("Both are bad", "两个都不好"),
    "arena_help": (
        "Two models, drawn at random, answer the same question. Vote once both are finished; then you see who they are.",
        "随机抽取两个模型回答同一个问题。两边都答完后投票，投票后显示模型名称。",
    ),
    # refusals
    "busy": ("An answer is being written; wait for its end, or stop it.", "正在生成回答，请等待结束或先停止。"),
    "nothing_typed": ("There is no text: type something first.", "内容为空，请先输入。"),
    "no_model": ("No model is chosen. Is the server running? Press Refresh.", "没有选择模型。服务器是否已启动？请点“刷新”。"),
    "unanswered": (
        "The last question has no answer to go on from. Regenerate it, edit it, or take it back with Undo; your new text stays.",
        "上一个问题还没有完整的回答。请重新生成、修改，或用“撤销”收回；新输入的内容会保留。",
    ),
    "no_question": ("There is no question yet.", "还没有问题。"),
    "nothing_to_undo": ("There is nothing to undo.", "没有可以撤销的操作。"),
    "two_models": (
        "This takes two models; the servers have {found}. Name another with --server, then press Refresh.",
        "需要两个模型，而服务器只有 {found} 个。请用 --server 再指定一个服务器，然后点“刷新”。",
    ),
    "voted": ("This dialogue has its vote already. Begin a new round.", "这轮已经投过票了，请开始新一轮。"),
    "not_finished": ("Vote once both answers are finished.", "请等两个回答都完成后再投票。"),
    "nothing_to_save": ("There is no dialogue to save.", "没有可以保存的对话。"),
    "saved_already": ("This dialogue is in {path} already, as it is.", "这段对话已原样存于 {path}。"),
    "cut_answer": (
        "Not saved: answer {number} did not come to its own end, and training would learn to stop there. Regenerate it or edit it.",
        "未保存：第 {number} 个回答没有自然结束，训练时会学到在此中断。请重新生成或修改它。",
    ),
    "two_systems": (
        "Not saved: the answers were written under different system prompts. Regenerate them under one.",
        "未保存：各回答所用的系统提示词不同。请用同一个系统提示词重新生成。",
    ),
    "unreadable_row": ("Not saved, since training could not read it: {why}.", "未保存，训练无法读取：{why}。"),
    "cannot_write": ("Nothing was written: {path}: {why}.", "没有写入：{path}：{why}。"),
    # what happened
    "saved": ("Saved {answers} answer(s) to {path}.", "已将 {answers} 个回答存入 {path}。"),
    "thanks": ("Your vote is recorded. Left: {left}. Right: {right}.", "已记录投票。左：{left}，右：{right}。"),
    "stopped": ("Stopped. What was written until then is kept.", "已停止，已生成的内容会保留。"),
    "length": ("Cut at the longest answer that the settings allow.", "已达到设置中回答的最大长度，回答被截断。"),
    "later_gone": (
        "{count} later exchange(s) went with the edit; Undo brings them back.",
        "修改后，其后的 {count} 轮对话已移除，可用“撤销”恢复。",
    ),
    "no_models": ("The servers have no models.", "服务器上没有模型。"),
    # faults of servers
    "unreachable": ("{server} cannot be reached. {detail}", "无法连接 {server}。{detail}"),
    "key": (
        "{server} does not take the API key. Start sft web with VICUGNA_API_KEY set. {detail}",
        "{server} 不接受 API 密钥。请设置 VICUGNA_API_KEY 后再启动 sft web。{detail}",
    ),
    "too_long": (
        "The dialogue does not fit into the model's context; nothing was cut. Shorten it, or lower the longest answer. {detail}",
        "对话超出了模型的上下文长度，没有截断任何内容。请缩短对话，或减小回答的最大长度。{detail}",
    ),
    "refused": ("{server} refused the request. {detail}", "{server} 拒绝了请求。{detail}"),
    "busy_server": ("{server} is busy. Regenerate in a moment. {detail}", "{server} 正忙，请稍后重新生成。{detail}"),
    "failed": ("{server} failed. {detail}", "{server} 出错。{detail}"),
    "broke_off": ("{server} broke off within the answer. {detail}", "{server} 在回答途中断开。{detail}"),
    "no_such_model": ("There is no model {detail} any more. Press Refresh.", "模型 {detail} 已不存在，请点“刷新”。"),
    "a_server": ("A server", "服务器"),
}


def say(language: Language, key: str, **values: object) -> str:
    """The words under a key, with values put in."""
    return WORDS[key][LANGUAGES.index(language)].format(**values).strip()


def preferred(accepted: str) -> Language:
    """The language of the page that a browser likes best, by its Accept-Language header; English where it likes neither."""
    wishes: list[tuple[float, int, str]] = []
    for place, wish in enumerate(accepted.lower().split(",")):
        tag, _, weight = wish.partition(";")
        try:
            wishes.append((-float(weight.strip().removeprefix("q=") or 1), place, tag.strip().split("-")[0]))
        except ValueError:
            continue
    for _, _, tag in sorted(wishes):
        for language in LANGUAGES:
            if tag == language:
                return language
    return "en"
