"""From a request to the tokens of its prompt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from inference.model import CHAT_TASK, DecoderMetadata
from inference.worker.chat import ChatTemplate, PromptError

__all__ = ["PromptEncoder", "PromptError"]

# Contents stand in the rendered text as their numbers between two characters of private use.
_CONTENT = re.compile("\ue000([0-9]+)\ue001")
_REMEMBERED_PIECES = 256


class PromptEncoder:
    """Turns what a user wrote into token ids; special tokens in it are ordinary text.

    Templates are ours and may hold special tokens; the user's text must not, or a prompt could end
    itself and speak for the model.

    Args:
        tokenizer: A `tokenizers.Tokenizer`; it is changed, and belongs to this encoder.
        metadata: Names the templates.
    """

    def __init__(self, tokenizer: Any, metadata: DecoderMetadata) -> None:
        self._tokenizer = tokenizer
        self._special_ids = frozenset(
            number
            for number, token in tokenizer.get_added_tokens_decoder().items()
            if token.special
        )
        self._pieces: dict[str, list[int]] = {}
        self._templates = {
            task: (self._template_ids(before), self._template_ids(after))
            for task, (before, after) in metadata.prompts.items()
        }
        self._chat: ChatTemplate | None = None
        if metadata.chat_template is not None:
            begin, end = metadata.begin_token or "", metadata.end_tokens[0]
            self._chat = ChatTemplate(metadata.chat_template, begin_token=begin, end_token=end)

    @property
    def prefixes(self) -> list[list[int]]:
        """What the prompts of each task begin with."""
        prefixes = [before for before, _ in self._templates.values()]
        if self._chat is not None:
            rendered = self._chat.render([("user", "\ue0000\ue001")])
            prefixes.append(self._template_ids(_CONTENT.split(rendered)[0]))
        return [prefix for prefix in prefixes if prefix]

    def encode(self, task: str, text: str, messages: Sequence[Sequence[str]] = ()) -> list[int]:
        """Return the ids of a whole prompt.

        Args:
            task: Chooses the template.
            text: The question.
            messages: The conversation, as role and content; a prompt of a single question does not
                need it.

        Raises:
            KeyError: the model has no prompt for the task.
            PromptError: the chat template refuses the messages.
        """
        if task in self._templates:
            before, after = self._templates[task]
            return [*before, *self._user_ids(text), *after]
        if task != CHAT_TASK or self._chat is None:
            raise KeyError(task)
        return self._conversation(self._chat, messages or [("user", text)])

    def _conversation(self, chat: ChatTemplate, messages: Sequence[Sequence[str]]) -> list[int]:
        """Render and tokenise a conversation.

        The whole is tokenised at once, as in training. Only where that finds other special tokens
        than the template's own, the contents are tokenised by themselves as ordinary text.
        """
        contents = [content for _, content in messages]
        marked = [(role, f"\ue000{n}\ue001") for n, (role, _) in enumerate(messages)]
        # Text at even places, numbers of contents at odd ones.
        parts = _CONTENT.split(chat.render(marked))
        texts = [contents[int(p)] if n % 2 else p for n, p in enumerate(parts)]
        whole = self._ids("".join(texts), special=True)
        pieces = [self._template_ids(part) for part in parts[::2]]
        own = [number for piece in pieces for number in piece if number in self._special_ids]
        if [number for number in whole if number in self._special_ids] == own:
            return whole
        ids = list(pieces[0])
        for content, piece in zip(texts[1::2], pieces[1:], strict=True):
            ids += [*self._user_ids(content), *piece]
        return ids

    def _template_ids(self, text: str) -> list[int]:
        known = self._pieces.get(text)
        if known is None:
            known = self._ids(text, special=True)
            if len(self._pieces) < _REMEMBERED_PIECES:
                self._pieces[text] = known
        return known

    def _user_ids(self, text: str) -> list[int]:
        return self._ids(text, special=False)

    def _ids(self, text: str, *, special: bool) -> list[int]:
        self._tokenizer.encode_special_tokens = not special
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids
