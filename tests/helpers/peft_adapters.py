"""Adapters as a user of PEFT saves them: random, as after training."""

import peft
import torch
from transformers import AutoModel, AutoModelForSequenceClassification


def save_adapter(backbone, directory, classes=5, seed=0, classifier=True, **options):
    """Save a random adapter of PEFT on a backbone.

    Args:
        backbone: Directory of the backbone.
        directory: Where to save.
        classes: Outputs of the classifier.
        seed: Of its weights.
        classifier: Whether it is one; else it has no head.
        options: Of `LoraConfig`.

    Returns:
        The model.
    """
    torch.manual_seed(seed)
    if classifier:
        stock = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=classes)
    else:
        stock = AutoModel.from_pretrained(backbone)
    options = {"r": 3, "lora_alpha": 6, "target_modules": ["query", "value"], **options}
    options.setdefault("task_type", "SEQ_CLS" if classifier else "FEATURE_EXTRACTION")
    model = peft.get_peft_model(stock, peft.LoraConfig(**options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
        elif "magnitude" in name:
            parameter.data *= 1 + 0.1 * torch.rand_like(parameter)
    model.save_pretrained(directory)
    return model.eval()
