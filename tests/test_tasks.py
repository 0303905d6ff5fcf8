import pytest

from loraens.tasks import QUORA, SST, STS, Task


@pytest.mark.parametrize(("task", "outputs"), [(SST, 5), (QUORA, 1), (STS, 1)])
def test_width_of_head(task, outputs):
    assert task.num_outputs == outputs
    assert Task.from_dict(task.to_dict()) == task


@pytest.mark.parametrize(
    ("task", "text", "value"), [(SST, "4", 4), (QUORA, "0.0", 0), (QUORA, "1.0", 1), (STS, "3.25", 3.25), (STS, "5", 5)]
)
def test_labels(task, text, value):
    assert task.parse_label(text) == value


@pytest.mark.parametrize(("task", "text"), [(SST, "5"), (SST, "1.5"), (QUORA, "yes"), (STS, "5.1"), (STS, "-1"), (STS, "nan")])
def test_labels_out_of_range(task, text):
    with pytest.raises(ValueError, match="is not"):
        task.parse_label(text)


def test_class_names_come_before_numbers():
    task = Task("stars", ("text",), "stars", "classes", "cross_entropy", "accuracy", ("1", "2", "3"))
    assert task.parse_label("1") == 0
    assert task.parse_label("0") == 0  # no class is called 0, so it is the class number


@pytest.mark.parametrize(
    "change",
    [
        {"text_columns": ()},
        {"metric": "pearson"},
        {"loss": "mse"},
        {"class_names": ("a",)},
        {"class_names": ("a", "a", "b")},
        {"loss": "binary_cross_entropy"},
    ],
)
def test_contradictions(change):
    with pytest.raises(ValueError, match="task sst"):
        Task(**{**SST.__dict__, **change})
