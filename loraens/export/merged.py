"""One model that other libraries load without code of ours: a member, or a soup, merged with the
backbone.

A model that pools over BERT's or ALBERT's pooler is a sequence classifier of `transformers`; one
that pools by the mean, or reads the first or last token, is a SentenceTransformer of three modules,
whose embeddings are the logits.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from loraens.errors import InputError
from loraens.export.graph import check_texts
from loraens.files import new_directory
from loraens.inference.predictor import Predictor
from loraens.model.backbone import load_encoder, quiet_loading
from loraens.model.packaged import locate
from loraens.tasks import Task

TOLERANCE = 1e-3  # of logits
POOLING = {"mean": "mean", "cls": "cls", "last": "lasttoken"}  # names of sentence-transformers


def export_merged(
    predictor: Predictor, task: Task, directory: Path, texts: Sequence[tuple[str, ...]]
) -> tuple[str, float]:
    """Write a merged model, after its logits of some texts were compared with `predictor`'s.

    Args:
        predictor: A member or a soup.
        task: Its task.
        directory: Where to write; it must be new or empty.
        texts: Texts to compare.

    Returns:
        The expression that loads it, and the largest difference of a logit.

    Raises:
        InputError: It is an ensemble of several members, no library loads its like, a package is
            missing, or the logits differ.
    """
    members = predictor.members
    if members > 1:
        raise InputError(
            f"format transformers is of one model, and this ensemble runs {members}: give a member,"
            " a soup (`loraens ensemble --method soup`), or --format onnx",
            option="format",
        )
    pooled = predictor.model.pooling == "pooler"
    if pooled and predictor.model.architecture.classifier_prefix is None:
        kind = predictor.model.encoder.config.model_type
        raise InputError(
            f"format transformers: classifiers of type {kind} have more than the pooler and one"
            " linear layer: give --format onnx",
            option="format",
        )
    if not pooled and find_spec("sentence_transformers") is None:
        raise InputError(
            "format transformers of models that pool by mean, cls or last needs the package"
            " sentence-transformers: pip install 'loraens[sentence-transformers]'",
            option="format",
        )
    check_texts(predictor)
    with new_directory(directory) as work:
        save, logits = (_classifier, _of_classifier) if pooled else (_modules, _of_modules)
        with quiet_loading():
            save(predictor, task, work)
            found = logits(work, texts)
        apart = float(np.abs(found - predictor.logits(texts, task)[0]).max())
        if apart > TOLERANCE:
            raise InputError(
                f"the merged model's logits differ from those of `predict` by up to {apart:.2g};"
                " nothing was written"
            )
    loaded = (
        "AutoModelForSequenceClassification.from_pretrained" if pooled else "SentenceTransformer"
    )
    return f"{loaded}({str(directory)!r})", apart


def _tokenizer(predictor: Predictor) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        locate(predictor.backbone),
        use_fast=True,
        trust_remote_code=False,
        model_max_length=predictor.max_length,
    )


def _names(task: Task) -> dict[int, str]:
    """Names of the logits."""
    if task.num_outputs == len(task.class_names):
        return dict(enumerate(task.class_names))
    return {k: f"{task.name}_{k}" for k in range(task.num_outputs)}


def _classifier(predictor: Predictor, task: Task, directory: Path) -> None:
    """Save a sequence classifier of `transformers`."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    names = _names(task)
    config = AutoConfig.from_pretrained(
        locate(predictor.backbone),
        trust_remote_code=False,
        id2label=names,
        label2id={name: k for k, name in names.items()},
    )
    classifier = AutoModelForSequenceClassification.from_config(config)
    getattr(classifier, classifier.base_model_prefix).load_state_dict(
        predictor.model.encoder.state_dict()
    )
    head = predictor.model.heads[task.name]
    with torch.no_grad():
        classifier.classifier.weight.copy_(head.weight[0])
        classifier.classifier.bias.copy_(head.bias[0])
    classifier.save_pretrained(directory)
    _tokenizer(predictor).save_pretrained(directory)


def _of_classifier(directory: Path, texts: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Logits `(N, C)` of a saved classifier, one text at a time."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    with torch.inference_mode():
        rows = [
            model(**tokenizer(*text, truncation=True, return_tensors="pt")).logits[0]
            for text in texts
        ]
    return torch.stack(rows).numpy()


def _modules(predictor: Predictor, task: Task, directory: Path) -> None:
    """Save the modules of a SentenceTransformer: encoder, pooling, and the head."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    base = directory / ".encoder"
    encoder = load_encoder(predictor.backbone, pooler=False, packed=False)
    encoder.load_state_dict(predictor.model.encoder.state_dict())
    encoder.save_pretrained(base)
    _tokenizer(predictor).save_pretrained(base)
    transformer = modules.Transformer(str(base), max_seq_length=predictor.max_length)
    width = encoder.config.hidden_size
    pooling = modules.Pooling(width, pooling_mode=POOLING[predictor.model.pooling])
    dense = modules.Dense(width, task.num_outputs, activation_function=torch.nn.Identity())
    head = predictor.model.heads[task.name]
    with torch.no_grad():
        dense.linear.weight.copy_(head.weight[0])
        dense.linear.bias.copy_(head.bias[0])
    SentenceTransformer(modules=[transformer, pooling, dense], device="cpu").save(str(directory))
    shutil.rmtree(base)


def _of_modules(directory: Path, texts: Sequence[tuple[str, ...]]) -> np.ndarray:
    """Logits `(N, C)` of saved modules."""
    from sentence_transformers import SentenceTransformer

    given = [text if len(text) > 1 else text[0] for text in texts]
    model = SentenceTransformer(str(directory), device="cpu")
    return np.asarray(model.encode(given, show_progress_bar=False))
