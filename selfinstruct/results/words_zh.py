"""The root verb and noun of a Chinese instruction, by word lists and the order of words; the English side is :mod:`selfinstruct.results.words`.

A sentence is read clause by clause. Of each, polite words are skipped, then::

    写一首诗                      the clause begins with a verb of VERBS: the longest one                 写, 诗
    把句子翻译成英文                it begins with a coverb: the verb behind its noun; 把 and 将 take it     翻译, 句子
    用给定的数据计算平均数            a verb beside 的 belongs to a noun: 给定 is passed over                  计算, 均数
    雕刻一个苹果                   a word of no list before 一, 这, 以下 ... is taken for a verb             雕刻, 苹果
    给定一个句子，输出其长度          a scene is set: the verb is in the clause behind                      输出, 长度
    摩擦如何帮助我们行走？            a question has no root verb in this sense                            None
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from selfinstruct.results.words import Root, word_set

VERBS = word_set(
    """
    上传 下载 举例 举例说明 举出 举办 举行 书写 争取 交流 产生 介绍 代入 代写 仿写 仿照 优化 估测 估算 估计 体现 作出 作文 作答 作诗
    使用 保存 保护 保持 修复 修好 修改 修正 倒序 借助 假扮 假装 假设 做出 充实 充当 公布 写下 写入 写出 写好 写成 写明 写道 决定 准备
    减少 出具 出示 分为 分享 分出 分开 分成 分析 分离 分类 分组 分解 分辨 分配 分隔 划出 划分 列举 列出 列明 创作 创办 创建 创新 创立
    创造 删减 删去 删掉 删除 判别 判定 判断 制作 制定 制表 制订 制造 刷新 刻画 剖析 剪辑 劝告 劝说 加上 加以 加入 加密 加工 包装 化简
    匹配 区分 区别 压缩 去掉 去除 参与 参照 参考 反对 反转 反驳 发出 发布 发明 发现 发表 发言 发起 发送 取代 取出 取名 变为 变成 变换
    叙述 合并 合成 吸引 告知 告诉 命名 唱出 商量 回复 回应 回忆 回想 回答 回顾 填上 填充 填入 填写 填空 填补 增加 增强 声明 处理 备份
    复习 复制 复述 头脑风暴 夸奖 存储 学习 安慰 安排 安装 完善 完成 定义 定位 定出 实施 实现 审查 审核 审阅 宣传 宣布 对出 对比 对照
    对话 对调 对齐 寻找 导入 导出 尝试 展开 展望 展示 帮助 应用 延伸 延长 建立 建议 建造 开发 开展 弄清 引入 引导 引用 引述 强调 归为
    归入 归到 归并 归成 归类 归纳 录入 形容 得出 思考 总结 恢复 想一想 想出 想象 感谢 截取 手写 打乱 打出 打分 打包 打印 打开 打造 执行
    扩充 扩写 扩展 扮演 批改 批注 批评 找出 找到 抓取 折叠 报告 抽取 担任 拆分 拆解 拓展 拟写 拟定 拟订 拼写 拼出 拼接 拼读 指出 指定
    指导 指明 指认 挑出 挑选 换成 换算 排出 排列 排序 排成 排除 探究 探索 探讨 接受 推导 推广 推断 推测 推理 推算 推荐 推论 描写 描绘
    描述 提供 提倡 提出 提升 提取 提名 提炼 提议 提醒 提问 提高 插入 揭示 搜寻 搜索 搜集 搞定 搬运 搭建 摆放 摘出 摘取 摘录 摘抄 播放
    撰写 支持 收录 收集 改为 改写 改变 改善 改成 改正 改编 改良 改进 改造 教会 教导 数出 整合 整理 断句 明确 显示 更换 更改 更新 更正
    替代 替换 朗诵 朗读 构建 构思 构想 构造 查找 查看 查询 标上 标出 标明 标注 标示 标记 标识 校对 校正 校验 核实 核对 格式化 梳理 检查
    检测 检索 检验 概括 概述 模仿 模拟 欢迎 比喻 比对 比较 求出 求得 求解 汇总 汇报 注上 注明 注释 测试 测量 浏览 消去 消除 润色 添加
    清洗 清理 清除 演示 演算 澄清 激发 点出 点评 烘焙 烹制 烹饪 照顾 猜出 猜测 献给 理出 理解 理顺 生成 申请 画出 登记 监测 相乘 相减
    相加 相除 省略 研究 破解 确保 确定 确认 祝福 祝贺 称赞 移动 移除 突出 突显 答复 策划 筛选 签订 简介 简化 简略 简述 算出 管理 精简
    纠正 练习 组合 组建 组成 组织 组装 细化 绘出 绘制 绘画 给出 统计 续写 维修 维护 编写 编制 编排 编码 编程 编辑 编造 缩写 缩减 缩略
    缩短 罗列 置换 翻成 翻译 考察 考虑 考证 联想 联系 背诵 脱敏 草拟 获取 获得 衡量 补充 补全 补写 补出 补齐 表演 表达 表述 裁剪 装饰
    观察 规划 规定 规范 解决 解密 解开 解方程 解构 解析 解码 解答 解说 解读 解释 计划 计算 订正 订购 认出 讨论 训练 议论 记录 记述 讲明
    讲解 讲讲 讲述 许愿 论证 论述 设定 设想 设立 设置 设计 访问 证实 证明 评价 评估 评分 评判 评定 评测 评级 评议 评论 评述 识别 诊断
    译出 译成 询问 详述 说出 说明 说服 说说 读出 调换 调整 调查 调试 谈论 谈谈 谱写 购买 起名 起草 跳过 转为 转写 转化 转发 转变 转录
    转成 转换 转移 转述 辅导 输入 输出 辨别 辨析 辨认 辩护 辩论 过滤 运用 运算 运行 返回 还原 进行 连接 连线 退回 逆向工程 逆转 选出
    选取 选定 选择 逐步解释 通知 造出 造句 遇到 道歉 遵循 邀请 配上 配对 采用 采访 释义 重写 重命名 重塑 重复 重建 重排 重新书写
    重新创建 重新命名 重新安排 重新排列 重新排序 重新措辞 重新撰写 重新整理 重新构思 重新构造 重新格式化 重新混合 重新组合 重新组织
    重新编写 重新表达 重新表述 重新设计 重新造句 重新陈述 重构 重组 重述 鉴别 鉴定 鉴赏 链接 问候 阅读 阐明 阐述 阐释 附上 附加 陈述
    限制 集中 集合 集思广益 预估 预报 预测 预计 预订 领会 颠倒 验证 鼓励
    """
)
"""Verbs of two characters and more that instructions begin with."""


def _any(pieces: str | frozenset[str]) -> str:
    """A pattern of alternatives, words or patterns without white space, the longest first."""
    every = set(pieces.split() if isinstance(pieces, str) else pieces)
    return f"(?:{'|'.join(sorted(every, key=lambda piece: (-len(piece), piece)))})"


_HAN = "[\u4e00-\u9fff]"
_NUMBER = r"[一二两三四五六七八九十几数\d]"
_MEASURE = "[首篇段个句条种封份则组道本张幅副些项名位款件部套场支轮家类点只例](?![子称件目数置法票落])"  # 段落 is a paragraph

# --- verbs
_SINGLE = (
    "写译填求解编选列画教数取猜谈讲拟撰算发放答给改排挑说举做找想读建定补对配造评查问试帮起出设回加标圈量背抄念唱留换用让使作"
)
_SINGLE_INSIDE = "写译填求编选列画取猜讲拟撰算发放答排挑举做找想读建起造设"  # 对, 给, 用 ... there lead on to a further noun
_SINGLE_BEFORE = _any(
    rf"{_NUMBER} [出成下上个首篇份封则副张道这那我以所“\"《「□A-Za-z] \s 段(?!落) 条(?!件) 句(?!子) 给定 有关 关于"
)
# 计算机, 设计师, 翻译家 ... are nouns
_NOUNS = _any(
    "机(?![器会构制场]) 师(?!生) 家(?![庭人里长居具乡常务]) 员(?!工) 器(?![官材具]) 生(?![日物活态产词成动肖字命]) 程序 部(?![分署]) 者"
)
_VERB = f"{_any(VERBS)}(?!{_NOUNS})"
_HEAD = re.compile(
    rf"{_VERB}|写(?![作真实法]|字楼)|译(?![文者本])|[{_SINGLE}](?={_SINGLE_BEFORE})|[求猜拟续编读](?={_HAN}{{2}})"
)
_INSIDE = re.compile(
    rf"(?<![的所被个不未可]){_VERB}(?!的(?![更得])|[中里上时内](?![文国面]))|"
    rf"(?<![的所被])[{_SINGLE_INSIDE}](?={_SINGLE_BEFORE}|$)|(?<![的所听])[写译](?![作的])"
)
# An unknown word is a verb where a noun phrase begins behind it.
_NEVER_TWO = _any("如果 假如 为了 因为 至少 最多 大约 例如 比如 由于 对于 以下 下面 其中 只有 作为")
_PHRASE = _any(rf"{_NUMBER}+{_MEASURE} 一 以下 下面 下列 上述 这 该 此 给定 所给 有关 关于 我的 句子 文本 文章 单词")
_UNKNOWN = re.compile(
    rf"(?!{_NEVER_TWO}|{_NUMBER}|[第每各某这那该此其我你您他她它们的]|{_HAN}的){_HAN}{{2}}(?={_PHRASE})|"
    rf"(?![有是在第这那每共约和与及或从到中为的了着过另某各前后上下大小多少]){_HAN}(?={_NUMBER}{_MEASURE})"
)
_AGAIN = _any(frozenset(verb[2:] for verb in VERBS if verb.startswith("重新")))
_POLITE_WORDS = _any(
    rf"""
    请问 请 请[你您] 请用户 麻烦你? 烦请 劳驾 帮我们? 帮忙 帮助我们? 代我 为我(?!们)(?={_HAN}{{2}}) 替我 能不能 能否 可以 可否
    [你您](?:现在|接下来)?(?:能不能|能否|可不可以|可以|可否|能够|能|需要|应该|应当|得|必须|要) (?:[你您]的)?任务(?:是)?
    我们?(?:想让|需要|希望|想请|要求|想要)[你您]? 我想 我要 让我们 我们来? 试着 试图 尝试着? 努力 需要 必须 至少 现在 各(?=[举写给说列])
    下面(?=[分说记讲写列介总]|我们) {_HAN}{{2,3}}地(?=(?:{_VERB})|写) 正确地? 自己 尽量 尽可能 再次? 首先 先 最后 只需? 仅 然后 接着
    接下来 之后 随后 顺便 并且 并 且 同时 还要? 也 自动 随机 进一步 分别 直接 逐[一条段句个] 独立 逐步(?!解释) 一起 简要 简单 详细 仔细
    步骤[一二三四] 重新(?!{_AGAIN}) \d+[.、)] [-*•·]
    """
)
_POLITE = re.compile(rf"(?:{_POLITE_WORDS})+\s*")
_SCENE = re.compile(
    _any(
        """
        [你您](?:将|会|是|有|被|在|正|已|刚|想|认为|觉得|如何|怎) 给[你您] 如果 假如 若 现有 已知 已有 以下是 下面是 这是 这里有 有一 某
        我是 我有 我将 由于 因为 鉴于 为了 关于 此外 作为
        """
    )
)
_SETS_SCENE = ("假设", "想象", "设想", "假定")
_ASKS = re.compile(
    _any(
        "什么 为何 如何 怎 谁 哪 何时 何处 何地 多少 几(?=[个种位年岁点]) 是否 有没有 是不是 能不能 会不会 难道 有[何哪] 有什么 为什么"
    )
)
_WANTS_TO_KNOW = re.compile(r"(?:需要|要|有|是)(?:哪|什么|多少|几)")  # "运行程序需要什么？"
_COVERB = re.compile(
    _any(
        """
        把(?!握) 将(?![来军要]) 对(?![比照话联称齐调出])于? 为(?![什何难止]) 给(?![定出予]) 就(?![业是读]) 从(?![事而来]) 在(?!线)
        用(?![户品途法]) 通过 使用 利用 采用 运用 应用 借助 结合 围绕 以(?=下面|下列) 以(?![下上及外往来]) 给定(?!的) 当(?![前地代然年时])
        根据 依据 基于 按照 按(?![压钮]) 依照 参照 参考 仿照 照(?![片顾]) 针对 替(?![换代]) 帮(?!助) 向(?![量导]) 与 和 让(?=助手|[它这])
        使(?=[下这其]|以下) 仅用 只用 不用 不使用
        """
    )
)
_MEANS = ("使用", "利用", "采用", "运用", "应用", "结合", "参考", "参照", "仿照")  # verbs themselves, where none follows
# A verb at their end is a noun: 根据描述，...
_GROUNDS = word_set("根据 依据 基于 按照 依照 参照 参考 仿照 以 按 在 从 通过 给定")
_AIM = re.compile(rf"(?<=[\u4e00-\u9fff”\" ])来(?![源自往说看讲])|(?<={_HAN})(?<!可)以(?![下上及外])")
_NUMBERED = re.compile(_NUMBER)
_ON_A_TOPIC = ("提出", "提供", "给出", "发表", "展开", "进行", "写", "集思广益")
_RESULT = re.compile(r"[为成到得在给入出至进回作]|$|并|，")

# --- what stands behind it
_MANY = r"(?:(?:至少|最多|大约|约)?(?:[一二两三四五六七八九十百几多]+(?!下)|\d+))"
_COUNT = re.compile(
    rf"^[出下成为着到了]?(?:我们?|你|您)?(?:[这那每该此]?{_MANY}\s*(?:{_MEASURE})?|[这那每该此]{_MEASURE}|[首篇个段句封份则道张](?!落|子|数))?"
)
_COUNTED = re.compile(rf"^(?:[一二两三四五六七八九十百几多]+|\d+){_MEASURE}")
_LEAD = re.compile(r"^(?:什么是|何为|何谓|以下|下面|下列|给定|如下|上述|一下|有关|关于|常见的?)+")
_PURPOSE = _any(
    """
    打印 评估 包含 说明 展示 帮助 支持 解决 反映 提高 确保 获得 满足 适应 表达 表示 测试 检查 找 计算 显示 使 吸引 避免 消除 实现 完成
    """
)
_STOP = re.compile(
    r"[，。：:；！？,.!?、\n]|并且|并(?![列发])|以及|不超过|使[其之]|之间|用[于来](?![^，。]*的)|"
    rf"(?<!带)来(?={_HAN}{{2}})(?![源自往])|(?<={_HAN})(?<![可所])以(?={_PURPOSE})"
)
_NAMED = re.compile(r"[“\"「《‘']□+[”\"」》’']")
_AND_VERB = re.compile(rf"^[和并与或及](?:{_VERB})")
_CLAUSAL = re.compile(rf"如何|怎|为什么|为何|是否|是不是|什么(?!是)|哪|谁|还是|多少|是(?={_HAN}*种)")
_MOVED_END = re.compile(r"从|按|以(?![下上及])|用(?![户品])|根据|由|在")

_SENTENCE = re.compile(r"[^。！？?!；;]+[。！？?!；;]?")
_CLAUSE = re.compile(r"[，：:,]|\s[-–—]\s|——")
_ASIDE = re.compile(r"（[^）]*）|\([^)]*\)")
_QUOTED = re.compile(r"“[^”]*”|\"[^\"]*\"|「[^」]*」|《[^》]*》|‘[^’]*’|'[^']*'")


def root_chinese(instruction: str) -> Root | None:
    """The verb of the first clause that asks for something, and the last characters (at most two) of its object.

    None for a question, and where no clause begins with a verb.
    """
    text = _ASIDE.sub("", instruction.strip().split("\n", 1)[0].replace("\xa0", " "))
    # what is quoted is no part of the sentence; its marks stay, so that it can be an object
    text = _QUOTED.sub(lambda match: match[0][0] + "□" * (len(match[0]) - 2) + match[0][-1], text)
    scene: Root | None = None
    for sentence in _SENTENCE.findall(text):
        for clause, rest, polite in _clauses(sentence):
            if _ASKS.match(clause):
                break
            found = _root(clause, rest, asked=sentence.endswith(("？", "?")) and not polite)
            if found and found.verb in (*_SETS_SCENE, *_MEANS):
                scene = scene or found
            elif found:
                return found
    return scene


def _clauses(sentence: str) -> Iterator[tuple[str, str, bool]]:
    """Each clause without its polite opening, the sentence from there on, and whether there was one."""
    start = 0
    for stop in [*(match.start() for match in _CLAUSE.finditer(sentence)), len(sentence)]:
        clause, rest = sentence[start:stop].strip(" 。！？?!；;，：:,-–—"), sentence[start:].strip(" ，：:,-–—")
        start = stop + 1
        polite = _POLITE.match(clause)
        cut = polite.end() if polite else 0
        if clause[cut:]:
            yield clause[cut:], rest[cut:], cut > 0


def _root(clause: str, rest: str, *, asked: bool) -> Root | None:
    if _SCENE.match(clause):
        return None
    coverb = _COVERB.match(clause)
    verb = _HEAD.match(clause)
    if verb and verb[0] in {"给", "让", "使", "用", "对"} and coverb:
        verb = None
    if verb and asked and _WANTS_TO_KNOW.search(clause):
        return None
    if verb and verb[0] not in _MEANS:
        return Root(verb[0], _object(rest[verb.end() :]))
    if coverb and not (asked and coverb[0] not in {"把", "将"}):
        return _behind(clause, rest, coverb)
    if asked:
        return None
    unknown = _UNKNOWN.match(clause)
    return Root(unknown[0], _object(rest[unknown.end() :])) if unknown else None


def _behind(clause: str, rest: str, coverb: re.Match[str]) -> Root | None:
    """The verb that follows a coverb and its noun."""
    word = coverb[0]
    # "给我写一首诗" has a verb behind 我, "给我一首诗" has none but 给
    giving = re.match(r"给(?:我们?|出)?", clause)
    if giving and clause.startswith("给我"):
        verb = _HEAD.match(clause, giving.end())
        at = verb or giving
        return Root(verb[0] if verb else "给", _object(rest[at.end() :]))
    found = list(_INSIDE.finditer(clause, coverb.end() + 1))
    aim = _AIM.search(clause, coverb.end())
    if aim and (word == "通过" or not any(match.start() < aim.start() for match in found)):
        found = [match for match in found if match.start() >= aim.end()] or found
    # "为工作查询写一封信": what stands right before a verb and its number is a noun
    begins = {match.start() for match in found if _NUMBERED.match(clause, match.end())}
    found = [match for match in found if match.end() not in begins]
    if word in _GROUNDS:
        found = [match for match in found if clause[match.end() :].strip("的")]
    elif word in {"把", "将"}:
        found = [match for match in found if _RESULT.match(clause, match.end())] or found
    if not found:
        if word in _MEANS or word == "给":
            return Root(word, _object(rest[coverb.end() :]))
        return None
    verb = found[0]
    if word == "就":  # "就如何省水提出建议"
        verb = next((match for match in found if match[0] in _ON_A_TOPIC), verb)
    elif _ASKS.search(clause[: verb.start()]):
        return None
    if word in {"把", "将"}:
        return Root(verb[0], _object(_MOVED_END.split(clause[coverb.end() : verb.start()], maxsplit=1)[0]))
    return Root(verb[0], _object(rest[verb.end() :]))


def _object(rest: str) -> str:
    """The last two characters of an object, of the part behind its last 的; nothing where it is a clause."""
    rest = _AND_VERB.sub("", _NAMED.sub("", rest))
    bare = _COUNT.sub("", rest, count=1)
    rest = _LEAD.sub("", bare)
    rest = _COUNT.sub("", rest, count=1) if rest != bare else rest
    rest = _STOP.split(rest, maxsplit=1)[0].rstrip("吗吧呢呀")
    if _CLAUSAL.search(rest):
        return ""
    head = rest.rsplit("的", 1)[-1] or rest
    han = re.sub(r"[^\u3400-\u4dbf\u4e00-\u9fff]", "", _COUNTED.sub("", head) or head)
    return "" if han in {"与", "和", "或"} else han[-2:]
