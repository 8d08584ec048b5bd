"""Writes docs/methods.md from the docstrings of all methods.

    python docs/make_methods.py          # writes it
    python docs/make_methods.py --check  # exits with 1 and a sentence if it is out of date

Only the bytes are measured; all else is what the docstrings say.
"""

import argparse
import inspect
import pkgutil
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import adamx
import adamx.family

PAGE = Path(__file__).with_name("methods.md")
COMMAND = "python docs/make_methods.py"

# Values for parameters, besides learning_rate, that have no default.
ARGUMENTS: dict[str, dict[str, Any]] = {"adamc": {"max_lr": 1e-3}}

SECTION = re.compile(r"^(Args|State|Raises|Differs from [^:]*|References): *")

HEAD = f"""# Methods

Written by `{COMMAND}` from the docstrings; change those, not this page.

In a box, lines marked `>` are what differs from the method that the sentence above it names. g is the gradient, p the
parameter, u what is added to p, a hat the correction 1 / (1 - b^t), t the step, counted from 1. "Bytes" is what a
method at its defaults keeps for each parameter of a 1000 x 1000 float32 matrix, measured.
"""


class Docstring(NamedTuple):
    """A method's docstring in pieces.

    Attributes:
      summary: its first line.
      blocks: what follows, up to the sections: (whether it is an algorithm box, text).
      sections: by header ("State", "Differs from PyTorch"), their text in one line.
    """

    summary: str
    blocks: list[tuple[bool, str]]
    sections: dict[str, str]


def names() -> list[str]:
    """All methods, one a module of `adamx.family`."""
    return sorted(module.name for module in pkgutil.iter_modules(adamx.family.__path__))


def parse(method: Callable[..., Any]) -> Docstring:
    """A method's docstring in pieces."""
    summary, *lines = (inspect.getdoc(method) or "").partition("\n>>>")[0].splitlines() or [""]
    body: list[str] = []
    sections: dict[str, list[str]] = {}
    current = body
    for line in lines:
        header = SECTION.match(line)
        if header:
            current = sections.setdefault(header[1], [])
            line = line[header.end() :]
        current.append(line)
    blocks: list[tuple[bool, str]] = []
    for block in re.split(r"\n\s*\n", "\n".join(body).strip("\n")):
        is_box = block.startswith(" ")
        if is_box and blocks and blocks[-1][0]:  # one box with an empty line in it
            blocks[-1] = True, f"{blocks[-1][1]}\n\n{block}"
        elif block.strip():
            blocks.append((is_box, block))
    whole = [(is_box, textwrap.dedent(text) if is_box else text) for is_box, text in blocks]
    return Docstring(summary, whole, {name: " ".join(" ".join(text).split()) for name, text in sections.items()})


def state(name: str, method: Callable[..., adamx.Transformation]) -> tuple[list[str], float]:
    """The moments' names, and their bytes a parameter, at the defaults."""
    tx = method(1e-3, **ARGUMENTS.get(name, {}))
    kept = jax.eval_shape(tx.init, {"kernel": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)})
    return list(kept.moments), sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept.moments)) / 1e6


def markdown(text: str, known: set[str]) -> str:
    """A docstring's prose, with references to methods and papers as links."""
    link = lambda found: f"[`{found[1]}`](#{found[1]})" if found[1] in known else f"`{found[1]}`"
    text = re.sub(r":(?:func|class|data):`~?(?:\w+\.)*(\w+)`", link, text)
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


class Named(str):
    """A default that is a function or a type, shown by its name."""

    __repr__ = str.__str__


def call(name: str, method: Callable[..., Any]) -> str:
    """The method with its parameters and defaults, without types."""
    named = lambda x: Named(x.__name__) if hasattr(x, "__name__") and x is not inspect.Parameter.empty else x
    given = inspect.signature(method).parameters.values()
    shown = [p.replace(annotation=p.empty, default=named(p.default)) for p in given]
    return f"`adamx.{name}{inspect.Signature(shown)}`"


def page() -> str:
    """The whole text of docs/methods.md."""
    prose = lambda text: markdown(text, set(names()))
    rows, chapters = [], []
    for name in names():
        method = getattr(adamx, name)
        doc, (moments, size) = parse(method), state(name, method)
        summary, paper = prose(doc.summary), prose(doc.sections.get("References", ""))
        cells = f"[`{name}`](#{name})", summary, f"{size:g}", paper
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
        blocks = [f"```text\n{text}\n```" if is_box else prose(text) for is_box, text in doc.blocks]
        kept = f"{', '.join(f'`{m}`' for m in moments)}; {size:g} bytes a parameter" if moments else "none"
        differs = [prose(f"{head}: {text}") for head, text in doc.sections.items() if head.startswith("Differs")]
        chapters += [f"## {name}", summary, call(name, method), *blocks, f"State: {kept}.", *differs, f"Paper: {paper}"]
    table = "\n".join([HEAD, "| method | what it is | bytes | paper |", "|---|---|---|---|", *rows])
    return "\n\n".join([table, *chapters]) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is out of date")
    args, text = parser.parse_args(argv), page()
    if not args.check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        print(f"docs/methods.md is out of date: run {COMMAND}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
