import pytest

from loraens.tasks import QUORA, SST, STS, Task


@pytest.mark.parametrize(("task", "outputs"), [(SST, 5), (QUORA, 1), (STS, 1)])
def test_width_of_head(task, outputs):
    assert task.num_outputs == outputs
    assert Task.from_json(task.to_json()) == task


@pytest.mark.parametrize(
    ("task", "text", "value"),
    [(SST, "4", 4), (QUORA, "0.0", 0), (QUORA, "1.0", 1), (STS, "3.25", 3.25), (STS, "5", 5)],
)
def test_labels(task, text, value):
    assert task.parse_label(text) == value


@pytest.mark.parametrize(
    ("task", "text"),
    [(SST, "5"), (SST, "1.5"), (QUORA, "yes"), (STS, "5.1"), (STS, "-1"), (STS, "nan")],
)
def test_labels_out_of_range(task, text):
    with pytest.raises(ValueError, match="is not"):
        task.parse_label(text)


def test_class_names_that_are_numbers_are_values_not_places():
    task = Task(
        "stars", ("text",), "stars", "classes", "cross_entropy", "accuracy", ("1", "2", "3")
    )
    assert [task.parse_label(text) for text in ("1", "2.0", "3.00")] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"'0' is not one of the classes 1, 2, 3"):
        task.parse_label("0")


def test_labels_may_be_numbers_of_named_classes():
    fields = ("kind", ("text",), "kind", "classes", "cross_entropy", "accuracy", ("WHO", "WHEN"))
    assert [Task(*fields).parse_label(text) for text in ("WHO", "1", "0.0")] == [0, 1, 0]
    with pytest.raises(ValueError, match="'1' is not"):
        Task(*fields, numbered=False).parse_label(
            "1"
        )  # names that were read from the training file


@pytest.mark.parametrize(
    "change",
    [
        {"text_columns": ()},
        {"metric": "pearson"},
        {"loss": "mse"},
        {"class_names": ("a",)},
        {"class_names": ("a", "a", "b")},
        {"loss": "binary_cross_entropy"},
        {"name": "a/b"},
        {"name": ""},
        {"kind": "number", "loss": "mse", "metric": "mse"},  # with class names
    ],
)
def test_contradictions(change):
    with pytest.raises(ValueError, match=r"^task "):
        Task(**{**SST.__dict__, **change})
