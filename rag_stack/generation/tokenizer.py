"""The generator's tokenizer and chat template, for counting what a prompt will take."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rag_stack.errors import InvalidRequestError


class GeneratorTokenizer:
    """Counts tokens exactly as the engine will. Thread-safe; a call takes about a millisecond for 1,000 tokens."""

    def __init__(self, directory: Path) -> None:
        # Imported here: the client and the command line must not pay for transformers.
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
        # Only a tokenizer in Rust has one. A tokenizer.json may cut texts off; a call of the other one undoes that.
        self._backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if self._backend is not None:
            self._backend.no_truncation()
            self._backend.no_padding()

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """What the chat template marks turns with: in a prompt's text the engine reads them as the marks themselves."""
        return tuple(token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special)

    def count(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """Tokens of the messages under the chat template, with the turn marker that asks for the answer.

        Raises InvalidRequestError for messages that the template refuses, such as two user turns in a row.
        """
        return len(self.encode(messages))

    def count_text(self, text: str) -> int:
        """Tokens of a text by itself, with those that the tokenizer puts around one."""
        if self._backend is None:
            return len(self.encode_text(text))
        # The one of its ways that does not keep where each token stands, which takes half as long again.
        return len(self._backend.encode_batch_fast([text])[0])

    def encode(self, messages: Sequence[Mapping[str, Any]], *, tools: Any = None) -> Sequence[int]:  # noqa: ANN401
        """The same tokens themselves; `tools` as a request has them. Raises InvalidRequestError."""
        if self._tokenizer.chat_template is None:
            return self.encode_text("\n\n".join(str(message.get("content") or "") for message in messages))
        # Imported here for the same reason as transformers, which depends on it.
        from jinja2 import TemplateError

        try:
            encoded = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], tools=tools, add_generation_prompt=True, return_dict=True
            )
        except TemplateError as exc:
            raise InvalidRequestError(
                f"the model's chat template refuses these messages: {exc}", param="messages"
            ) from exc
        ids: Sequence[int] = encoded["input_ids"]
        return ids

    def encode_text(self, text: str) -> Sequence[int]:
        """The tokens of a prompt that is one text."""
        ids: Sequence[int] = self._tokenizer(text)["input_ids"]
        return ids
