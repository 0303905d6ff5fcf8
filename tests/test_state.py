"""`sweep.json`: what is read, and what is refused in one sentence."""

import json
from pathlib import Path

import pytest

from loraens.errors import InputError
from loraens.train.state import SweepState, changed_setting

PATH = Path("runs/sts/sweep.json")
# as it was before there was a class for it
OLD = """{
  "settings": {
    "mode": "lora",
    "data": {
      "sts-train": "5c6b"
    }
  },
  "measured": null,
  "fits": 2,
  "rung": 1,
  "logged": [
    "r1-c1-s0-lr0.0001"
  ]
}
"""


def test_an_older_file_is_read():
    state = SweepState.from_json(OLD.encode(), PATH)
    assert (state.measured, state.fits, state.rung) == (None, 2, 1)
    assert state.members is None
    written = json.loads(state.to_json())
    assert SweepState.from_json(state.to_json(), PATH) == state
    assert written.pop("members") is None
    assert len(written.pop("sha256")) == 64
    assert written == json.loads(OLD)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("rung", None, "Field required"),
        ("settings", None, "Field required"),
        ("rung", "1", "valid integer"),
        ("rung", -1, "greater than or equal to 0"),
        ("measured", 0, "greater than or equal to 1"),
        ("fits", 1.5, "valid integer"),
        ("logged", "all", "valid array"),
    ],
)
def test_a_bad_field_is_named_with_the_file(field, value, reason):
    content = json.loads(OLD)
    if value is None:
        del content[field]
    else:
        content[field] = value
    with pytest.raises(InputError) as caught:
        SweepState.from_json(json.dumps(content).encode(), PATH)
    message = str(caught.value)
    assert message.startswith(f"{PATH} cannot be read (field '{field}")
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"{", b"[]", b"", b"\xff"])
def test_what_is_no_state_is_refused(content):
    with pytest.raises(InputError, match=r"sweep.json is no"):
        SweepState.from_json(content, PATH)


def test_a_changed_setting_is_found_by_its_dotted_name():
    before = {"mode": "lora", "data": {"sts-train": "5c6b"}}
    assert changed_setting(before, {**before, "data": {"sts-train": "aaaa"}}) == (
        "data.sts-train",
        "5c6b",
        "aaaa",
    )
    assert changed_setting(before, {**before, "data": {"sts-train": "5c6b"}}) is None
