"""docs/methods.md knows every method, and every method's docstring says what the page needs."""

import inspect
import sys
from pathlib import Path

import pytest

import adamx

sys.path.insert(0, str(Path(__file__).parents[1] / "docs"))
import make_methods

REPAIR = f"then run {make_methods.COMMAND}"

each_name = pytest.mark.parametrize("name", make_methods.names())


def parsed(name):
    assert inspect.isfunction(getattr(adamx, name, None)), (
        f"adamx/family/{name}.py has no method adamx.{name}: export it in adamx/__init__.py, {REPAIR}"
    )
    return make_methods.parse(getattr(adamx, name))


@each_name
def test_every_method_is_on_the_page(name):
    page = make_methods.PAGE.read_text(encoding="utf-8")
    for what, text in {"chapter": f"\n## {name}\n", "row in the table": f"\n| [`{name}`](#{name}) |"}.items():
        assert text in page, f"docs/methods.md has no {what} for {name}: run {make_methods.COMMAND}"


@each_name
def test_every_docstring_has_an_algorithm_a_use_a_state_and_a_paper(name):
    doc = parsed(name)
    where = f"the docstring of {name} (adamx/family/{name}.py)"
    assert doc.summary.endswith("."), f"{where} does not start with one line that is a sentence: mend it, {REPAIR}"
    assert any(is_box for is_box, _ in doc.blocks), f"{where} has no indented algorithm box: write it, {REPAIR}"
    uses = [text for is_box, text in doc.blocks if not is_box and text.startswith("Use it ")]
    assert uses, f"{where} has no paragraph that starts with 'Use it': write it, {REPAIR}"
    assert " fails " in " ".join(uses[0].split()), f"{where} does not say in 'Use it ...' where it fails: {REPAIR}"
    for section in ("State", "References"):
        assert doc.sections.get(section), f"{where} has no section '{section}:': write it, {REPAIR}"


@each_name
def test_marked_lines_are_marked_in_one_column(name):
    boxes = "\n".join(text for is_box, text in parsed(name).blocks if is_box)
    marks = [line for line in boxes.splitlines() if line.lstrip().startswith(">")]
    assert all(line.startswith("> ") for line in marks), (
        f"the boxes of {name} (adamx/family/{name}.py) mark lines in several columns: align the '>', {REPAIR}"
    )


def test_the_page_is_up_to_date(capsys):
    code = make_methods.main(["--check"])
    assert code == 0, capsys.readouterr().err


def test_check_notices_a_changed_page_and_writes_nothing(tmp_path, monkeypatch, capsys):
    page = tmp_path / "methods.md"
    monkeypatch.setattr(make_methods, "PAGE", page)
    monkeypatch.setattr(make_methods, "names", lambda: ["adam", "amsgrad"])
    assert make_methods.main(["--check"]) == 1
    assert not page.exists()
    assert make_methods.main([]) == 0
    assert make_methods.main(["--check"]) == 0
    capsys.readouterr()
    page.write_text(page.read_text(encoding="utf-8").replace("12 bytes", "11 bytes"), encoding="utf-8")
    assert make_methods.main(["--check"]) == 1
    assert capsys.readouterr().err == "docs/methods.md is out of date: run python docs/make_methods.py\n"


def test_a_docstring_comes_apart_as_it_was_written():
    def method():
        """One line.

        As :func:`adam`, except (changed lines marked):

            m = m
          > u = m

          > p = p + u

        Use it here; it fails there. Conventions:

        - one,
          in two lines.

        Args:
          lr: rate.

        State: mu: float32[params];
        4 bytes.
        Differs from PyTorch (`X(y=1)`): as: before.
        References: A & B 2020 (arXiv:1234.56789).

        >>> 1 > 0
        True
        """

    doc = make_methods.parse(method)
    assert doc.summary == "One line."
    assert doc.blocks == [
        (False, "As :func:`adam`, except (changed lines marked):"),
        (True, "  m = m\n> u = m\n\n> p = p + u"),
        (False, "Use it here; it fails there. Conventions:"),
        (False, "- one,\n  in two lines."),
    ]
    assert doc.sections == {
        "Args": "lr: rate.",
        "State": "mu: float32[params]; 4 bytes.",
        "Differs from PyTorch (`X(y=1)`)": "as: before.",
        "References": "A & B 2020 (arXiv:1234.56789).",
    }


def test_references_become_links():
    prose = make_methods.markdown(":func:`adam`, :func:`~adamx.store_state`, arXiv:1412.6980", {"adam"})
    assert prose == "[`adam`](#adam), `store_state`, [arXiv:1412.6980](https://arxiv.org/abs/1412.6980)"
