"""The rule that makes Markdown of answers that came as a browser's HTML."""

from __future__ import annotations

from typing import Literal

from sft.curate.chat import Chat, Message
from sft.curate.html.reader import to_markdown
from sft.curate.html.tags import is_html, is_page, is_paragraph
from sft.curate.rules.base import RuleBase


class HtmlRule(RuleBase):
    """HTML to Markdown, message by message; Markdown and plain text stay byte for byte.

    An answer of one paragraph, ``<p>Hello.</p>``, is read as HTML only beside other answers of the conversation that are.
    """

    kind: Literal["html"] = "html"
    roles: tuple[Literal["user", "assistant", "system", "tool"], ...] = ("assistant",)
    """Roles whose messages are converted where they are HTML: prose in elements, or the site's widgets. People write and paste HTML to
    ask about it, so a user's messages are better left to ``others``."""
    others: Literal["site", "never"] = "site"
    """Messages of all other roles: ``site`` converts those that stand wholly inside the site's own container; ``never`` none."""

    def apply(self, chat: Chat) -> Chat:
        """The conversation with its HTML messages as Markdown."""
        if not any("<" in message.text for message in chat.messages):
            return chat
        found = [self._is_ours(message) for message in chat.messages]
        if any(yes and message.role in self.roles for yes, message in zip(found, chat.messages, strict=True)):
            found = [
                yes or (m.role in self.roles and is_paragraph(m.text)) for yes, m in zip(found, chat.messages, strict=True)
            ]
        if not any(found):
            return chat
        messages = (Message(m.role, to_markdown(m.text)) if yes else m for yes, m in zip(found, chat.messages, strict=True))
        return chat.with_messages(tuple(messages))

    def _is_ours(self, message: Message) -> bool:
        if message.role in self.roles:
            return is_html(message.text)
        return self.others == "site" and is_page(message.text)
