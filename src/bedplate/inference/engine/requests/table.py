"""JOB_TYPES: the table of request types, with the job class that runs each."""

from __future__ import annotations

from typing import Any

from bedplate.inference.engine.requests.base import Request
from bedplate.inference.engine.requests.generate import Generate, GenerateJob
from bedplate.inference.engine.requests.job import RequestJob
from bedplate.inference.engine.requests.pooled import Classify, ClassifyJob, Embed, EmbedJob, Label, LabelJob
from bedplate.inference.engine.requests.score import Score, ScoreJob

JOB_TYPES: dict[type[Request], type[RequestJob[Any]]] = {
    Generate: GenerateJob,
    Score: ScoreJob,
    Embed: EmbedJob,
    Classify: ClassifyJob,
    Label: LabelJob,
}
