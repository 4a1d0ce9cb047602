"""From a request to the tokens of its prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class PromptEncoder:
    """Turns a user's text into token ids; special tokens in it are ordinary text.

    Args:
        tokenizer: A `tokenizers.Tokenizer`; it is changed, and belongs to this encoder.
        templates: Task to what stands before and after the user's text.
    """

    def __init__(self, tokenizer: Any, templates: Mapping[str, tuple[str, str]]) -> None:
        self._tokenizer = tokenizer
        # The template is ours and may hold special tokens; the user's text must not, or a prompt
        # could end itself and speak for the model. Templates are tokenised once.
        self._templates = {
            task: (self._ids(before), self._ids(after))
            for task, (before, after) in templates.items()
        }
        tokenizer.encode_special_tokens = True

    @property
    def prefixes(self) -> list[list[int]]:
        """What the prompts of each task begin with."""
        return [before for before, _ in self._templates.values() if before]

    def encode(self, task: str, text: str) -> list[int]:
        """Return the ids of a whole prompt.

        Raises:
            KeyError: the model has no prompt for the task.
        """
        before, after = self._templates[task]
        return [*before, *self._ids(text), *after]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids
