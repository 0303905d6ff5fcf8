"""For users of PEFT: a whole grid of LoRA adapters in the time of a few, and back into PEFT.

`python examples/from_peft.py` takes a `LoraConfig` as it is, trains it with several ranks and seeds
at once, and loads the best adapter with PEFT again, where it gives the same logits.
"""

import argparse
import random

import pandas
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

import loraens

CONFIG = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], lora_dropout=0.0)
WORDS = {"good": ["charming", "clever", "warm", "funny"], "bad": ["dull", "tired", "cold", "loud"]}


def reviews(count: int, seed: int) -> pandas.DataFrame:
    """Made-up sentences, good or bad by one word."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        label = draw.choice(list(WORDS))
        text = f"a {draw.choice(WORDS[label])} film by the director of part {number}"
        rows.append({"text": text, "label": label})
    return pandas.DataFrame(rows)


def main() -> None:
    """Train a grid, choose, and compare with PEFT."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--epochs", type=int, default=2)
    given = parser.parse_args()

    data = loraens.TextFiles(
        "reviews",
        train=reviews(320, 0),
        dev=reviews(120, 1),
        text_columns=["text"],
        label_column="label",
    )
    sweep = loraens.Sweep(
        data,
        loraens.Grid(rank=[CONFIG.r, 2 * CONFIG.r], seed=[0, 1]),
        "runs/reviews",
        backbone=given.backbone,
        epochs=given.epochs,
        scale=CONFIG.lora_alpha / CONFIG.r,  # c of the paper: what BA is multiplied with
        targets=sorted(CONFIG.target_modules),
        lr=1e-3,
        pooling="mean",
    ).fit()
    print(sweep.to_frame()[["member", "reviews accuracy"]].to_string(index=False))

    proofs = loraens.prove(sweep, methods=["best", "omni", "greedy"])
    best, recommendation = proofs.recommended()
    print(recommendation.sentence)
    best.save("runs/reviews/ensembles/recommended-one")

    # A member is an adapter in PEFT's format, and a head
    (task,) = data.tasks
    member = max(sweep.manifests.values(), key=lambda manifest: manifest.score(task, "best"))
    folder = sweep.directory / member.name / member.epochs["best"]
    encoder = PeftModel.from_pretrained(AutoModel.from_pretrained(given.backbone), folder).eval()
    text = "a clever film by the director of part 7"
    tokens = AutoTokenizer.from_pretrained(given.backbone)([text], return_tensors="pt")
    with torch.inference_mode():
        pooled = encoder(**tokens).last_hidden_state.mean(dim=1)
        head = load_file(folder / "heads.safetensors")
        weight, bias = (head[f"reviews.{part}"] for part in ("weight", "bias"))
        logits = pooled @ weight.T + bias
    ours = loraens.Ensemble.load(sweep.directory / member.name).predict([text])[0]
    theirs = dict(zip(task.class_names, logits.softmax(-1)[0].tolist(), strict=True))
    both = {name: (theirs[name], ours[f"probability_{name}"]) for name in theirs}
    print({name: (round(one, 4), round(other, 4)) for name, (one, other) in both.items()})


if __name__ == "__main__":
    main()
