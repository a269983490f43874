"""docs/configuration.md names every key, and its examples load."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from config import schema, tls, trunks
from config.loader import parse
from tests.config.documents import folder

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")

# Written as text in the document, or filled in by the loader.
NO_KEYS = (schema.Endpoint, schema.Listener)
MODELS = [
    model
    for model in (*vars(schema).values(), *vars(trunks).values(), *vars(tls).values())
    if isinstance(model, type) and issubclass(model, BaseModel) and model.model_fields and model not in NO_KEYS
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_key_is_described(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        key = field.alias or name
        if (model, key) != (schema.Password, "plain"):
            assert re.search(rf"`{key}`|[{{ ]{key}: ", PAGE), key


@pytest.mark.parametrize("kind", [schema.Role, schema.Strategy, schema.NoAnswer])
def test_every_word_is_described(kind: type[schema.Role | schema.Strategy | schema.NoAnswer]) -> None:
    for word in kind:
        assert f"`{word.value}`" in PAGE


def test_whole_document_of_the_page_loads(tmp_path: Path) -> None:
    example = re.search(r"## A whole document\n\n```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert example is not None
    loaded = parse(example[1], base=folder(tmp_path), environ={"ADMIN_PASSWORD": "x", "A0001_PASSWORD": "y"})
    assert loaded.warnings == ()


def test_defaults_of_the_page_are_those_of_the_schema() -> None:
    for model in (schema.Document, schema.Media, schema.Queue):
        for key, field in model.model_fields.items():
            if isinstance(field.default, int | float) and not isinstance(field.default, bool):
                assert re.search(rf"\| `{key}` \| [^|]+ \| {field.default:g} \|", PAGE), key
