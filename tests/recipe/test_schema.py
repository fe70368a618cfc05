"""The schema itself: every section is closed and every field is explained."""

import pytest

from dynprune.recipe import Recipe
from dynprune.recipe.section import Section


def sections(kind=Section):
    for child in kind.__subclasses__():
        yield child
        yield from sections(child)


@pytest.mark.parametrize("section", list(sections()), ids=lambda section: section.__name__)
def test_every_section_is_closed_and_frozen_and_every_field_has_a_sentence(section):
    assert section.model_config["extra"] == "forbid"
    assert section.model_config["frozen"]
    for name, field in section.model_fields.items():
        assert field.description, f"{section.__name__}.{name}"
        assert field.description.rstrip().endswith("."), f"{section.__name__}.{name}"


def test_the_schema_can_be_given_to_an_editor():
    assert Recipe.model_json_schema()["additionalProperties"] is False
