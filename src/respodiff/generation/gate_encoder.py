"""The text encoder of a pipeline, token by token: its states, and which tokens are words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float32]
BATCH = 128


class Encoder:
    """The first text encoder of a pipeline (CLIP in every family) as states of tokens."""

    def __init__(self, pipe: Any) -> None:
        self.tokenizer, self.model = pipe.tokenizer, pipe.text_encoder
        meta = self.model.device.type == "meta"  # offloaded: it is moved when it is called
        self.device = pipe._execution_device if meta else self.model.device
        depth = int(self.model.config.num_hidden_layers)
        self.layers = sorted({round(k * depth / 4) for k in range(5)})

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> list[tuple[list[int], Floats]]:
        """(token ids, states (T, layers, D)) of each text, without start, end and padding; cut off where the model stops reading."""
        out = []
        for start in range(0, len(texts), BATCH):
            found = self.tokenizer(
                list(texts[start : start + BATCH]),
                padding="longest",
                truncation=True,
                max_length=self.model.config.max_position_embeddings,
                return_tensors="pt",
            )
            states = self.model(found.input_ids.to(self.device), output_hidden_states=True).hidden_states
            rows = torch.stack([states[k] for k in self.layers], 2).to("cpu", torch.float32).numpy()
            for ids, mask, row in zip(found.input_ids.tolist(), found.attention_mask, rows, strict=True):
                end = int(mask.sum()) - 1
                out.append((ids[1:end], row[1:end]))
        return out

    def whole(self, phrase: str) -> bool:
        """Whether each word of a phrase is one token."""
        return all(p.endswith("</w>") for p in self.tokenizer.convert_ids_to_tokens(self.tokenizer(phrase).input_ids[1:-1]))

    def alone(self, ids: Sequence[int]) -> list[bool]:
        """For every token whether it is a whole word."""
        ends = [piece.endswith("</w>") for piece in self.tokenizer.convert_ids_to_tokens(list(ids))]
        return [end and before for end, before in zip(ends, [True, *ends], strict=False)]

    def words(self, ids: Sequence[int]) -> list[str]:
        """For every token the word that it is part of, as far as it has been read by then."""
        out, word = [], ""
        for piece in self.tokenizer.convert_ids_to_tokens(list(ids)):
            word += piece.removesuffix("</w>")
            out.append(word)
            word = "" if piece.endswith("</w>") else word
        return out
