"""What requests say of an answer's form, in OpenAI's, vLLM's and llama.cpp's words, as one constraint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from glassformer.errors import UsageError
from glassformer.generate.constraints import Constraint
from glassformer.serve.fields import Ask, Sampled

Schema = dict[str, Any] | bool


class NamedSchema(Ask):
    """A JSON schema with a name."""

    name: str | None = Field(default=None, max_length=200)
    description: str | None = None
    schema_: Schema | None = Field(default=None, alias="schema")
    strict: bool | None = Field(default=None, description="Answers hold to the schema either way.")


class ResponseFormat(Ask):
    """The form of an answer: text, any JSON object, or JSON that follows a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None
    schema_: Schema | None = Field(default=None, alias="schema", description="As llama.cpp spells it.")


class StructuredOutputs(Ask):
    """The form of an answer, as vLLM spells it."""

    json_: str | Schema | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    IGNORED: ClassVar[frozenset[str]] = frozenset({"disable_any_whitespace", "whitespace_pattern", "disable_fallback"})


class Constrained(Sampled):
    """An answer that may have to have a form; at most one way of saying which."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | Schema | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    grammar: str | None = Field(default=None, description="In Lark's form or llama.cpp's.")
    json_schema: Annotated[Schema | None, Field(description="As llama.cpp spells it.")] = None
    IGNORED: ClassVar[frozenset[str]] = Sampled.IGNORED | {"guided_whitespace_pattern"}

    @model_validator(mode="after")
    def _one_form(self) -> Constrained:
        try:
            self.constraint()
        except UsageError as error:
            raise ValueError(str(error)) from None
        return self

    def constraint(self) -> Constraint | None:
        """The form that the answer must have, if any.

        Raises:
            UsageError: several forms, or one that is none.
        """
        form, other = self.response_format, self.structured_outputs or StructuredOutputs()
        schemas: dict[str, Any] = {
            "guided_json": self.guided_json,
            "json_schema": self.json_schema,
            "structured_outputs.json": other.json_,
        }
        if form is not None and form.type == "json_schema":
            given = form.schema_ if form.json_schema is None else form.json_schema.schema_
            if given is None:
                raise UsageError("A json_schema is asked for and there is no schema.")
            schemas["response_format"] = given
        elif form is not None and form.type == "json_object" and form.schema_ is not None:
            schemas["response_format"] = form.schema_
        found = {name: Constraint.schema(schema) for name, schema in schemas.items() if schema is not None}
        if form is not None and form.type == "json_object" and form.schema_ is None:
            found["response_format"] = Constraint.json()
        if other.json_object:
            found["structured_outputs.json_object"] = Constraint.json()
        texts: Mapping[str, tuple[Any, Any]] = {
            "guided_regex": (Constraint.regex, self.guided_regex),
            "guided_choice": (Constraint.choice, self.guided_choice),
            "guided_grammar": (Constraint.grammar, self.guided_grammar),
            "grammar": (Constraint.grammar, self.grammar or None),
            "structured_outputs.regex": (Constraint.regex, other.regex),
            "structured_outputs.choice": (Constraint.choice, other.choice),
            "structured_outputs.grammar": (Constraint.grammar, other.grammar),
        }
        found |= {name: make(given) for name, (make, given) in texts.items() if given is not None}
        if len(found) > 1:
            raise UsageError(f"An answer has one form; {' and '.join(found)} give several.")
        return next(iter(found.values()), None)
