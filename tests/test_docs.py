"""The README says what the code does: commands, routes and settings are compared."""

from tests.reference import README, filled


def test_the_readme_lists_every_command_route_and_setting() -> None:
    text = README.read_text()
    assert text == filled(text), "run `python -m tests.reference` and read what changed"
