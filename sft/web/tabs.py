"""The two tabs of the page. What they show is drawn from the dialogue on the server after every step."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import gradio as gr

from sft.web.desk import Desk, Page, fault_words
from sft.web.records import WINNERS, Winner
from sft.web.servers import Sampling
from sft.web.show import box
from sft.web.talk import Refused, Talk
from sft.web.words import Language, say

Drawn = list[Any]


class Tab:
    """What both tabs have: questions, answers that are being written, and the steps back.

    Args:
        desk: shared by all pages.
        language: of the page.
    """

    name = ""
    blind = False

    def __init__(self, desk: Desk, language: Language) -> None:
        self.desk, self.language = desk, language
        self.boxes: list[gr.Chatbot] = []

    def say(self, key: str, **values: object) -> str:
        return say(self.language, key, **values)

    def talk(self, page: Page) -> Talk:
        raise NotImplementedError

    def refused(self, page: Page, why: Refused) -> Drawn:
        """The page as it was, what is typed included, and why nothing was done."""
        return self.draw(page, self.say(why.key, **why.values))

    def draw(self, page: Page, notice: str | None = None, typed: str | None = None) -> Drawn:
        """Updates of :attr:`outputs`. ``typed`` is what the place to type into shall hold; None leaves it alone."""
        talk = self.talk(page)
        busy = talk.busy
        words = self.ending(talk) if notice is None else notice
        return [
            *(gr.update(**box(talk, side, plain=page.plain), **self.box_more(page, side)) for side in range(len(self.boxes))),
            gr.update(value=words, visible=bool(words)),
            gr.skip() if typed is None else gr.update(value=typed),
            gr.update(interactive=not busy and self.goes_on(page)),
            gr.update(interactive=busy),
            gr.update(interactive=not busy and bool(talk.exchanges) and self.goes_on(page)),
            gr.update(interactive=not busy and talk.can_undo and self.goes_on(page)),
            gr.update(interactive=not busy),
            *self.draw_more(page),
        ]

    def box_more(self, page: Page, side: int) -> dict[str, Any]:
        """Properties of a chat box that only this tab has."""
        return {}

    def draw_more(self, page: Page) -> Drawn:
        """Updates of the outputs that only this tab has."""
        return []

    def goes_on(self, page: Page) -> bool:
        """Whether the dialogue takes another question."""
        return True

    def ending(self, talk: Talk) -> str:
        """What is to say of the last answers: faults, or that they were cut."""
        found = []
        for answer in talk.exchanges[-1].answers if talk.exchanges else []:
            if answer.fault is not None:
                found.append(fault_words(self.language, answer.fault, blind=self.blind))
            elif answer.state in ("stopped", "length"):
                found.append(self.say(answer.state))
        return "\n".join(dict.fromkeys(found))

    async def written(
        self,
        page: Page,
        step: Callable[[Talk], None],
        temperature: float,
        longest: float,
        *,
        notice: str = "",
        typed: str | None = None,
    ) -> AsyncIterator[Drawn]:
        """Take a step that leaves answers to be written, and write them."""
        talk = self.talk(page)
        try:
            step(talk)
        except Refused as why:
            yield self.refused(page, why)
            return
        sampling = Sampling(float(temperature), int(longest))
        async for _ in talk.write(lambda answer, messages: self.desk.servers.answer(answer.model, messages, sampling)):
            words = None if not talk.busy and self.ending(talk) else notice
            yield self.draw(page, words, typed)
            typed = None

    def build_dialogue(self, labels: list[str], **more: Any) -> None:
        """Chat boxes, the notice, and the place to type into."""
        with gr.Row():
            self.boxes = [
                gr.Chatbot(
                    label=label,
                    elem_id=f"{self.name}-box-{side}",
                    elem_classes="dialogue",
                    height="52vh",
                    min_width=300,
                    buttons=["copy"],
                    sanitize_html=True,
                    allow_file_downloads=False,
                    **more,
                )
                for side, label in enumerate(labels)
            ]
        self.notice = gr.Textbox(
            label=self.say("notice"),
            visible=False,
            interactive=False,
            max_lines=8,
            elem_id=f"{self.name}-notice",
            elem_classes="notice",
        )

    def build_input(self) -> None:
        self.typed = gr.Textbox(
            value="",
            label=self.say("message"),
            placeholder=self.say("placeholder"),
            show_label=False,
            max_lines=10,
            elem_id=f"{self.name}-typed",
        )
        with gr.Row():
            self.send = self.button("send", variant="primary")
            self.halt = self.button("stop", variant="stop", interactive=False)
            self.again = self.button("regenerate", interactive=False)
            self.back = self.button("undo", interactive=False)
            self.fresh = self.button("new_round" if self.blind else "new")

    def button(self, key: str, **more: Any) -> gr.Button:
        return gr.Button(self.say(key), min_width=104, elem_id=f"{self.name}-{key.split()[0]}", **more)

    def build_settings(self) -> None:
        with gr.Accordion(self.say("settings"), open=False, elem_id=f"{self.name}-settings"):
            self.system = gr.Textbox(value="", label=self.say("system"), lines=2, max_lines=10, elem_id=f"{self.name}-system")
            self.temperature = gr.Slider(
                0, 2, value=0.7, step=0.05, label=self.say("temperature"), info=self.say("temperature_info")
            )
            self.tokens = gr.Slider(1, 8192, value=512, step=1, label=self.say("max_tokens"))
            self.plain = gr.Checkbox(label=self.say("as_written"), elem_id=f"{self.name}-plain")

    @property
    def outputs(self) -> list[Any]:
        return [*self.boxes, self.notice, self.typed, self.send, self.halt, self.again, self.back, self.fresh]

    @property
    def sampling(self) -> list[Any]:
        return [self.system, self.temperature, self.tokens]

    def wire(self) -> None:
        """Connect what both tabs have."""
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        self.halt.click(self.on_stop, None, None, **quiet)
        self.back.click(self.on_undo, [self.typed], self.outputs, **quiet)
        self.fresh.click(self.on_new, None, self.outputs, **quiet)
        gr.on([box.clear for box in self.boxes], self.on_new, None, self.outputs, **quiet)
        self.plain.change(self.on_plain, [self.plain], self.outputs, **quiet)

    async def on_stop(self, request: gr.Request) -> None:
        self.talk(self.desk.page(request.session_hash)).stop()

    async def on_undo(self, typed: str, request: gr.Request) -> Drawn:
        page = self.desk.page(request.session_hash)
        try:
            typed = self.talk(page).undo(typed)
        except Refused as why:
            return self.refused(page, why)
        return self.draw(page, typed=typed)

    async def on_new(self, request: gr.Request) -> Drawn:
        page = self.desk.page(request.session_hash)
        try:
            self.talk(page).new()
        except Refused as why:
            return self.refused(page, why)
        return self.draw(page, "")

    async def on_plain(self, plain: bool, request: gr.Request) -> Drawn:
        page = self.desk.page(request.session_hash)
        page.plain = plain
        return self.draw(page)


class ChatTab(Tab):
    """A dialogue with one model: questions and answers may be edited, and it is saved as a training row."""

    name = "chat"

    def box_more(self, page: Page, side: int) -> dict[str, Any]:
        return {"editable": None if page.plain else "all"}  # what is edited is what is shown, and there it has a fence

    def talk(self, page: Page) -> Talk:
        return page.chat

    def build(self) -> None:
        with gr.Row():
            self.model = gr.Dropdown(
                [], label=self.say("model"), filterable=False, scale=4, min_width=200, elem_id="chat-model"
            )
            self.look = self.button("refresh", scale=0)
        self.build_settings()
        self.build_dialogue([self.say("dialogue")], editable="all")
        self.build_input()
        with gr.Row():
            self.keep = self.button("save")
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        asked = [self.model, *self.sampling]
        # a second press while one is at work gets its reason instead of silence
        gr.on(
            [self.send.click, self.typed.submit],
            self.on_send,
            [self.typed, *asked],
            self.outputs,
            trigger_mode="multiple",
            **quiet,
        )
        self.again.click(self.on_regenerate, asked, self.outputs, **quiet)
        self.boxes[0].edit(self.on_edit, asked, self.outputs, **quiet)
        self.keep.click(self.on_save, None, self.outputs, **quiet)
        self.look.click(self.on_models, [self.model], [self.model, self.notice], **quiet)
        self.wire()

    async def on_models(self, chosen: str | None) -> Drawn:
        """Ask the servers for their models again."""
        faults = await self.desk.servers.refresh()
        names = self.desk.servers.names
        words = "\n".join(fault_words(self.language, fault) for fault in faults) or ("" if names else self.say("no_models"))
        value = chosen if chosen in names else next(iter(names), None)
        return [gr.update(choices=names, value=value), gr.update(value=words, visible=bool(words))]

    async def on_send(
        self, typed: str, model: str | None, system: str, temperature: float, tokens: float, request: gr.Request
    ) -> AsyncIterator[Drawn]:
        def step(talk: Talk) -> None:
            self._choose(talk, model)
            talk.ask(typed, system)

        page = self.desk.page(request.session_hash)
        async for drawn in self.written(page, step, temperature, tokens, typed=""):
            yield drawn

    async def on_regenerate(
        self, model: str | None, system: str, temperature: float, tokens: float, request: gr.Request
    ) -> AsyncIterator[Drawn]:
        def step(talk: Talk) -> None:
            self._choose(talk, model)
            talk.regenerate(system)

        async for drawn in self.written(self.desk.page(request.session_hash), step, temperature, tokens):
            yield drawn

    async def on_edit(
        self, model: str | None, system: str, temperature: float, tokens: float, edited: gr.EditData, request: gr.Request
    ) -> AsyncIterator[Drawn]:
        page = self.desk.page(request.session_hash)
        place = edited.index if isinstance(edited.index, int) else edited.index[0]
        index, of_answer = divmod(place, 2)
        if not 0 <= index < len(page.chat.exchanges):
            yield self.draw(page)
            return
        if of_answer:
            try:
                page.chat.edit_answer(index, str(edited.value))
                yield self.draw(page)
            except Refused as why:
                yield self.refused(page, why)
            return

        def step(talk: Talk) -> None:
            self._choose(talk, model)
            talk.edit_question(index, str(edited.value), system)

        later = len(page.chat.exchanges) - index - 1
        words = self.say("later_gone", count=later) if later else ""
        async for drawn in self.written(page, step, temperature, tokens, notice=words):
            yield drawn

    async def on_save(self, request: gr.Request) -> Drawn:
        page = self.desk.page(request.session_hash)
        try:
            answers = page.keeper.save(page.chat, self.desk.saved)
        except Refused as why:
            return self.refused(page, why)
        return self.draw(page, self.say("saved", answers=answers, path=self.desk.saved))

    def _choose(self, talk: Talk, model: str | None) -> None:
        talk.refuse_while_busy()
        if not model:
            raise Refused("no_model")
        talk.models = (model,)


class ArenaTab(Tab):
    """Two models drawn at random, without their names until there is a vote."""

    name, blind = "arena", True

    def talk(self, page: Page) -> Talk:
        return page.battle.talk

    def goes_on(self, page: Page) -> bool:
        return page.battle.vote is None

    def box_more(self, page: Page, side: int) -> dict[str, Any]:
        label = self.say(("left", "right")[side])
        return {"label": f"{label}: {page.battle.talk.models[side]}" if page.battle.vote else label}

    def draw_more(self, page: Page) -> Drawn:
        return [gr.update(interactive=page.battle.open) for _ in WINNERS]

    def build(self) -> None:
        gr.Markdown(self.say("arena_help"))
        self.build_dialogue([self.say("left"), self.say("right")])
        with gr.Row():
            self.votes = {winner: self.button(winner, interactive=False) for winner in WINNERS}
        self.build_input()
        self.build_settings()
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        # a second press while one is at work gets its reason instead of silence
        gr.on(
            [self.send.click, self.typed.submit],
            self.on_send,
            [self.typed, *self.sampling],
            self.outputs,
            trigger_mode="multiple",
            **quiet,
        )
        self.again.click(self.on_regenerate, self.sampling, self.outputs, **quiet)
        for winner, pressed in self.votes.items():
            pressed.click(self._on_vote(winner), None, self.outputs, **quiet)
        self.wire()

    @property
    def outputs(self) -> list[Any]:
        return [*super().outputs, *self.votes.values()]

    async def on_send(
        self, typed: str, system: str, temperature: float, tokens: float, request: gr.Request
    ) -> AsyncIterator[Drawn]:
        page = self.desk.page(request.session_hash)
        if len(self.desk.servers.names) < 2:
            await self.desk.servers.refresh()

        def step(talk: Talk) -> None:
            if page.battle.vote is not None:
                raise Refused("voted")
            page.battle.draw(self.desk.servers.names, self.desk.chance)
            talk.ask(typed, system)

        async for drawn in self.written(page, step, temperature, tokens, typed=""):
            yield drawn

    async def on_regenerate(self, system: str, temperature: float, tokens: float, request: gr.Request) -> AsyncIterator[Drawn]:
        page = self.desk.page(request.session_hash)

        def step(talk: Talk) -> None:
            if page.battle.vote is not None:
                raise Refused("voted")
            talk.regenerate(system)

        async for drawn in self.written(page, step, temperature, tokens):
            yield drawn

    async def on_undo(self, typed: str, request: gr.Request) -> Drawn:
        page = self.desk.page(request.session_hash)
        if page.battle.vote is not None:
            return self.refused(page, Refused("voted"))
        return await super().on_undo(typed, request)

    def _on_vote(self, winner: Winner) -> Callable[..., Any]:
        async def on_vote(request: gr.Request) -> Drawn:
            page = self.desk.page(request.session_hash)
            try:
                page.battle.cast(winner, page.voter, self.desk.votes)
            except Refused as why:
                return self.refused(page, why)
            left, right = page.battle.talk.models
            return self.draw(page, self.say("thanks", left=left, right=right))

        return on_vote
