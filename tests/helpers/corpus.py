"""What the files of the made-up corpus hold."""

import csv

STEMS = {"sst": "ids-sst", "sts": "sts"}


def texts_of(corpus, task):
    """Ids and texts of a task's test file."""
    with (corpus / f"{STEMS[task]}-test-student.csv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    columns = ["sentence"] if task == "sst" else ["sentence1", "sentence2"]
    return [row["id"] for row in rows], [
        tuple(row[column].strip() for column in columns) for row in rows
    ]


def split_texts(corpus, task, split):
    """Texts of one labelled split, in the order of the file."""
    with (corpus / f"{STEMS[task]}-{split}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    columns = ["sentence"] if task == "sst" else ["sentence1", "sentence2"]
    return [tuple(row[column].strip() for column in columns) for row in rows]
