"""The words of simulated teams: domains with their roles and words, and how agents put things.

A vocabulary is a YAML file: `name`, `domains: {domain: {roles: [two or more], words: [eight or more]}}` (eight domains
or more) and, where the wording shall differ, `phrases` (see `Phrases`). Selectors never see it; the simulated model
that chooses speakers knows it, as a language model knows what words mean.

How held-out vocabularies are made, so that nothing is tuned on them: a field of business that no other has, its own
tone, ten domains with two roles and ten words each from that field's everyday language, every kind of phrase put anew
without a look at the cue words of `config/speakers.yaml` or at any conversation, failure or figure; committed before
the next tuning starts; never played before the one run at its end. Once a run's figures are out, the next round of
tuning writes new ones, and these become training.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Annotated, Final

import pydantic
import yaml

from convergio.graphflow.model import errors

SHIPPED: Final = "convergio.benchmarks"
TRAINING: Final = (
    *("business", "software", "restaurant", "university", "hospital", "newsroom"),
    *("harbour", "farm", "lawoffice", "filmset"),
    *("airport", "museum", "bank", "observatory"),
)
HELD_OUT: Final = ("vineyard", "orchestra", "cityhall", "expedition")

Few = Annotated[tuple[str, ...], pydantic.Field(min_length=1)]


class Phrases(pydantic.BaseModel):
    """Ways to put things. `{goal}`: the words of a piece of work, `{first}`: of what comes before; `{name}`: whose."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    opening: Few = ("We have to settle this together.", "Here is what has to be done.")
    item: Few = ("We need to {goal}.", "Please {goal}.", "It takes somebody to {goal}.")
    in_turn: Few = ("Everyone reports, one after the other.", "Each of you in turn, please.")
    done: Few = ("I did it: {goal}.", "Finished: {goal}.", "Here is the result, we can {goal} now.", "{goal}: done.")
    ask: Few = ("Next we need to {goal}.", "Now somebody has to {goal}.", "Who can {goal}?", "Still open: {goal}.")
    name: Few = ("{name}, this is yours.", "Over to {name}.", "I suggest that {name} goes on.")
    failed: Few = ("I tried to {goal}, but it did not work out.", "No result yet, I could not {goal}.")
    decline: Few = ("I cannot help here.", "That is not my field.", "I have nothing to add to that.")
    waiting: Few = ("I cannot {goal} before somebody is able to {first}.", "To {goal} we must {first} first.")
    rejected: Few = ("This does not hold, {goal} again please.", "Rejected: {goal} has to be done anew.")
    chatter: Few = (
        "By the way, {goal} is always interesting.",
        "I saw a good text about how to {goal}.",
        "Good point.",
    )
    describe: Few = ("Looks after {words}.", "Knows all about {words}.", "In charge of {words}.")
    verbs: Few = ("outline", "assess", "prepare", "settle", "draft", "review", "plan", "deliver")


class Domain(pydantic.BaseModel):
    """A field of work: who works there, and its words (one or more words each)."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    roles: tuple[str, ...] = pydantic.Field(min_length=2)
    words: tuple[str, ...] = pydantic.Field(min_length=8)


class Vocabulary(pydantic.BaseModel):
    """All of it."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    name: str
    domains: dict[str, Domain] = pydantic.Field(min_length=8)
    phrases: Phrases = Phrases()

    @pydantic.model_validator(mode="after")
    def _roles_are_names(self) -> Vocabulary:
        roles = [role for domain in self.domains.values() for role in domain.roles]
        if twice := {role for role in roles if roles.count(role) > 1}:
            raise ValueError(f"roles of more than one domain: {sorted(twice)}")
        if bad := [role for role in roles if not re.fullmatch(r"[a-z][a-z0-9_-]*", role)]:
            raise ValueError(f"not names (lower case, digits, '-' and '_'): {bad}")
        return self

    def lexicon(self) -> dict[str, str]:
        """The domain of each single word, where the word has only one."""
        seen: dict[str, set[str]] = {}
        for domain, entry in self.domains.items():
            for word in (part for words in entry.words for part in words.lower().split()):
                seen.setdefault(word, set()).add(domain)
        return {word: next(iter(domains)) for word, domains in seen.items() if len(domains) == 1}


def load(place: str | Path) -> Vocabulary:
    """The vocabulary in a file, or the shipped one of this name. Raises: errors.InvalidSetting with every problem."""
    shipped = resources.files(SHIPPED) / "vocabularies" / f"{place}.yaml"
    source = shipped if isinstance(place, str) and "/" not in place and shipped.is_file() else Path(place)
    try:
        return Vocabulary.model_validate(yaml.safe_load(source.read_text(encoding="utf-8")))
    except pydantic.ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise errors.InvalidSetting(f"the vocabulary is not valid: {said}", path=str(place)) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        hint = f"shipped are: {', '.join(TRAINING + HELD_OUT)}"
        raise errors.InvalidSetting(f"the vocabulary cannot be read: {error}", path=str(place), hint=hint) from error
