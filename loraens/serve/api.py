"""What is asked and answered over HTTP, and the worker that answers: batches over requests, all
members in one packed pass.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import litserve
from pydantic import BaseModel, ConfigDict, Field, field_validator

from loraens.data.tables import Row
from loraens.inference.predictor import Predictor
from loraens.records import Epoch

Text = str | tuple[str, str]


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Args:
        texts_each: 1, or 2 where the task takes pairs.
        texts: Texts of a request.
        characters: Characters of a text.
        coverage: The highest coverage that the held-out examples can give; None where they are not
            there.
    """

    texts_each: int = 1
    texts: int = 256
    characters: int = 20_000
    coverage: float | None = None


class OverLimitError(ValueError):
    """A request that is over a limit of size."""


class PredictRequest(BaseModel):
    """Texts to predict."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"texts": ["a fine film"]}]}
    )
    limits: ClassVar[Limits] = Limits()

    texts: list[Text] = Field(description="Texts, or pairs of texts where the task takes two.")
    coverage: float | None = Field(
        default=None,
        description="Share of new texts whose label is in the prediction set or interval that each"
        " row then has.",
    )
    members: bool = Field(default=False, description="Whether rows have each member's prediction.")

    @field_validator("texts")
    @classmethod
    def _check_texts(cls, texts: list[Text]) -> list[Text]:
        limits = cls.limits
        if not texts:
            raise ValueError("at least one text is expected")
        if len(texts) > limits.texts:
            raise OverLimitError(
                f"{len(texts)} texts: at most {limits.texts} a request are expected"
            )
        for number, text in enumerate(texts):
            parts = (text,) if isinstance(text, str) else text
            if len(parts) != limits.texts_each:
                expected = "one text, a string," if limits.texts_each == 1 else "a pair of texts"
                raise ValueError(f"number {number}: {expected} is expected")
            if not all(part.strip() for part in parts):
                raise ValueError(f"number {number} is blank")
            if max(map(len, parts)) > limits.characters:
                raise OverLimitError(
                    f"number {number}: up to {limits.characters} characters are taken"
                )
        return texts

    @field_validator("coverage")
    @classmethod
    def _check_coverage(cls, coverage: float | None) -> float | None:
        highest = cls.limits.coverage
        if coverage is None:
            return None
        if highest is None:
            raise ValueError("the model has no held-out scores, which it needs: leave it out")
        if not 0 < coverage <= highest:
            raise ValueError(f"a share above 0 and up to {highest} is expected")
        return coverage


class PredictResponse(BaseModel):
    """Predictions, a row a text."""

    predictions: list[dict[str, Any]] = Field(description="The columns of `loraens predict`.")


class Api(litserve.LitAPI):  # type: ignore[misc]
    """Predictions of a model.

    Args:
        model: As `Predictor.load` takes it.
        task: Name of the task, where there are several.
        epoch: Epoch of a member.
        backbone: Where the backbone is now, if it was moved.
        workers: Workers that share the threads of a CPU.
        batch: Requests that are answered together.
        wait: Seconds to wait for them.
    """

    def __init__(
        self,
        model: str,
        task: str | None,
        epoch: Epoch = "best",
        backbone: str | None = None,
        workers: int = 1,
        batch: int = 64,
        wait: float = 0.002,
    ) -> None:
        super().__init__(max_batch_size=batch, batch_timeout=wait)
        self.model = model
        self.task_name = task
        self.epoch = epoch
        self.backbone = backbone
        self.workers = workers

    def setup(self, device: str) -> None:
        """Load the model in a worker."""
        import torch

        for number in (signal.SIGINT, signal.SIGTERM):  # which may reach all processes
            signal.signal(number, signal.SIG_IGN)  # the server ends workers, once all is answered
        torch.set_num_threads(max(1, torch.get_num_threads() // self.workers))
        self.predictor = Predictor.load(
            self.model, self.epoch, device=device, backbone=self.backbone
        )
        self.task = self.predictor.task(self.task_name)

    def decode_request(self, request: PredictRequest) -> PredictRequest:
        """The request, which is checked."""
        return request

    def batch(self, inputs: Sequence[PredictRequest]) -> Sequence[PredictRequest]:
        """The requests that are answered together."""
        return inputs

    def unbatch(self, output: Sequence[list[Row]]) -> Sequence[list[Row]]:
        """The rows of each request."""
        return output

    def predict(self, x: Sequence[PredictRequest]) -> list[list[Row]]:
        """The rows of each request, of one pass over the texts of all."""
        texts = [(text,) if isinstance(text, str) else text for one in x for text in one.texts]
        logits = self.predictor.logits(texts, self.task)
        answers = []
        start = 0
        for one in x:
            end = start + len(one.texts)
            region = self.predictor.region(self.task, one.coverage)
            answers.append(
                self.predictor.rows_of(logits[:, start:end], self.task, region, one.members)
            )
            start = end
        return answers

    def encode_response(self, output: list[Row]) -> PredictResponse:
        """The answer of one request."""
        return PredictResponse(predictions=output)


# LitServe and FastAPI read the classes themselves, not their names
Api.decode_request.__annotations__ |= {"request": PredictRequest}
Api.encode_response.__annotations__ |= {"return": PredictResponse}
