from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from respodiff.data.target_proportions import check_proportions
from respodiff.generation.policies import assign, prompt_seed

GENDER = {"gender": ["woman", "man"]}
TONE = {"tone": ["light", "medium", "dark"]}
PROPORTIONS = [[1.0], [0.5, 0.5], [1 / 3] * 3, [0.7, 0.3], [0.5, 0.25, 0.15, 0.1], [0.0, 1.0], [0.9, 0.05, 0.05], [0.1] * 10]


def counts(rows: list[dict[str, str]], attribute: str) -> Counter[str]:
    return Counter(row[attribute] for row in rows)


# --- counts ---


@pytest.mark.parametrize("proportions", PROPORTIONS, ids=str)
def test_counts_of_a_prompt_sum_to_n_and_are_within_one_of_the_quota(proportions: list[float]) -> None:
    names = [str(i) for i in range(len(proportions))]
    wanted = {"one": dict(zip(names, proportions, strict=True))}
    for n in [*range(1, 60), 100, 997]:
        for seed in range(5):
            found = counts(assign({"one": names}, n, proportions=wanted, seed=seed), "one")
            assert found.total() == n
            for name, share in wanted["one"].items():
                assert abs(found[name] - n * share) < 1
                assert share or not found[name], "a share of 0 gets nothing"


def test_the_odd_image_goes_to_every_concept_as_often_as_its_share_says() -> None:
    odd = Counter(assign(GENDER, 1, proportions={"gender": {"woman": 0.3, "man": 0.7}}, seed=seed)[0]["gender"] for seed in range(900))
    assert abs(odd["woman"] - 270) < 55  # four standard deviations


# --- products ---


def test_product_cells_and_margins_are_within_one_for_any_number() -> None:
    for n in range(1, 41):
        for seed in range(8):
            rows = assign({**GENDER, **TONE}, n, seed=seed)
            assert len(rows) == n
            cells = Counter((row["gender"], row["tone"]) for row in rows)
            for g in GENDER["gender"]:
                assert abs(counts(rows, "gender")[g] - n / 2) < 1
                for t in TONE["tone"]:
                    assert abs(cells[g, t] - n / 6) < 1
            for t in TONE["tone"]:
                assert abs(counts(rows, "tone")[t] - n / 3) < 1


def test_the_order_of_attributes_in_a_product_does_not_matter_for_the_counts() -> None:
    rows = assign({**TONE, **GENDER}, 12, seed=3)
    assert set(Counter((row["gender"], row["tone"]) for row in rows).values()) == {2}


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 3, 4, 5, 10])
def test_over_many_prompts_no_cell_of_a_product_is_favoured(n: int) -> None:
    prompts = 1500
    cells: Counter[tuple[str, str]] = Counter()
    for i in range(prompts):
        cells.update((row["gender"], row["tone"]) for row in assign({**GENDER, **TONE}, n, seed=prompt_seed(0, str(i))))
    for g in GENDER["gender"]:
        for t in TONE["tone"]:
            assert cells[g, t] / prompts == pytest.approx(n / 6, abs=0.07)


@pytest.mark.parametrize(("first", "second"), [(2, 2), (3, 3), (3, 2), (2, 4)])
def test_attributes_of_any_sizes_are_crossed_and_not_paired(first: int, second: int) -> None:
    names = {"one": [str(i) for i in range(first)], "two": [str(i) for i in range(second)]}
    for n in range(1, 41):
        cells = Counter((row["one"], row["two"]) for row in assign(names, n, seed=n))
        assert all(abs(cells[a, b] - n / (first * second)) < 1 for a in names["one"] for b in names["two"])


def test_over_many_prompts_no_tone_is_kept_from_the_rarer_gender() -> None:
    tones: Counter[str] = Counter()
    for seed in range(900):
        rows = assign({**GENDER, **TONE}, 3, proportions={"gender": {"woman": 2 / 3, "man": 1 / 3}}, seed=seed)
        tones.update(row["tone"] for row in rows if row["gender"] == "man")
    assert all(tones[t] == pytest.approx(300, abs=60) for t in TONE["tone"])


# --- weighted shares ---

WEIGHTED = [
    {"gender": [0.7, 0.3], "tone": [0.5, 0.3, 0.2]},
    {"gender": [0.7, 0.3], "tone": [1 / 3, 1 / 3, 1 / 3]},
    {"gender": [0.9, 0.1], "tone": [0.72, 0.18, 0.1]},
    {"gender": [1.0, 0.0], "tone": [0.85, 0.15, 0.0]},
]


def named(proportions: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {a: dict(zip({**GENDER, **TONE}[a], values, strict=True)) for a, values in proportions.items()}


@pytest.mark.parametrize("proportions", WEIGHTED, ids=str)
@pytest.mark.parametrize("order", [1, -1])
def test_cells_and_margins_of_a_weighted_product_are_within_one(proportions: dict[str, list[float]], order: int) -> None:
    names, wanted = dict(list({**GENDER, **TONE}.items())[::order]), named(proportions)
    for n in [*range(1, 61), 97, 250]:
        for seed in range(3):
            rows = assign(names, n, proportions=wanted, seed=seed)
            assert len(rows) == n
            for a in names:
                assert all(abs(counts(rows, a)[c] - n * wanted[a][c]) < 1 - 1e-9 for c in names[a])
            cells = Counter((row["gender"], row["tone"]) for row in rows)
            for g, p in wanted["gender"].items():
                assert all(abs(cells[g, t] - n * p * q) < 1 - 1e-9 for t, q in wanted["tone"].items())
                assert all(not cells[g, t] for t, q in wanted["tone"].items() if p * q == 0), "a share of 0 gets nothing"


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 4, 7])
def test_over_many_prompts_a_weighted_cell_gets_its_quota(n: int) -> None:
    proportions, cells, prompts = named(WEIGHTED[0]), Counter(), 3000
    for i in range(prompts):
        cells.update(
            (row["gender"], row["tone"]) for row in assign({**GENDER, **TONE}, n, proportions=proportions, seed=prompt_seed(0, str(i)))
        )
    for g, p in proportions["gender"].items():
        for t, q in proportions["tone"].items():
            assert cells[g, t] / prompts == pytest.approx(n * p * q, abs=0.04)  # four standard deviations


def test_concepts_of_three_attributes_are_within_one() -> None:
    names = {**GENDER, **TONE, "age": ["young", "old"]}
    proportions = {**named(WEIGHTED[0]), "age": {"young": 0.6, "old": 0.4}}
    for n in range(1, 41):
        rows = assign(names, n, proportions=proportions, seed=n)
        for a in names:
            assert all(abs(counts(rows, a)[c] - n * proportions[a][c]) < 1 - 1e-9 for c in names[a])


def test_whole_quotas_are_met_exactly() -> None:
    rows = assign({**GENDER, **TONE}, 100, proportions=named(WEIGHTED[0]), seed=2)
    found = Counter((row["gender"], row["tone"]) for row in rows)
    assert [found[g, t] for g in GENDER["gender"] for t in TONE["tone"]] == [35, 21, 14, 15, 9, 6]


def test_weighted_shares_are_met_and_unnamed_concepts_get_none() -> None:
    rows = assign({**GENDER, **TONE}, 20, proportions={"gender": {"woman": 0.25, "man": 0.75}, "tone": {"dark": 1.0}}, seed=1)
    assert counts(rows, "gender") == {"woman": 5, "man": 15}
    assert counts(rows, "tone") == {"dark": 20}


def test_shares_are_read_by_name_not_by_order() -> None:
    assert check_proportions(["a", "b", "c"], {"c": 0.9, "a": 0.1}) == [0.1, 0.0, 0.9]
    assert check_proportions(["a", "b"], None) == [0.5, 0.5]


# --- order and seeds ---


def test_same_seed_same_rows_and_other_seed_other_order() -> None:
    rows = assign(GENDER, 20, seed=1)
    assert rows == assign(GENDER, 20, seed=1)
    assert rows != assign(GENDER, 20, seed=2)


def test_rows_are_the_same_in_every_process() -> None:
    rows = assign({**GENDER, **TONE}, 5, seed=3)
    expected = [("woman", "medium"), ("man", "light"), ("man", "medium"), ("man", "dark"), ("woman", "dark")]
    assert [(row["gender"], row["tone"]) for row in rows] == expected
    assert [row["tone"] for row in assign(TONE, 5, seed=3)] == ["medium", "medium", "light", "dark", "dark"]


@pytest.mark.parametrize("policy", ["exact", "random"])
def test_the_global_random_state_plays_no_part(policy: str) -> None:
    random.seed(1)
    state = random.getstate()
    rows = assign(GENDER, 20, policy, seed=1)  # type: ignore[arg-type]
    assert random.getstate() == state
    random.seed(2)
    assert assign(GENDER, 20, policy, seed=1) == rows  # type: ignore[arg-type]


def test_exact_rows_are_shuffled() -> None:
    firsts = Counter(assign(GENDER, 20, seed=seed)[0]["gender"] for seed in range(200))
    assert min(firsts["woman"], firsts["man"]) > 60
    for seed in range(20):
        names = [row["gender"] for row in assign(GENDER, 20, seed=seed)]
        assert names != sorted(names) and names != sorted(names, reverse=True)


def test_a_prompt_seed_depends_on_its_own_prompt_and_the_run_seed_alone() -> None:
    assert prompt_seed(0, "doctor") == prompt_seed(0, "doctor")
    seeds = {prompt_seed(s, p) for s in range(10) for p in ("doctor", "nurse", "1/doctor", "")}
    assert len(seeds) == 40


# --- random and none ---


def test_random_frequencies_are_near_the_shares() -> None:
    n = 6000
    rows = assign({**GENDER, **TONE}, n, "random", proportions={"gender": {"woman": 0.3, "man": 0.7}}, seed=5)
    assert counts(rows, "gender")["woman"] / n == pytest.approx(0.3, abs=0.03)
    cells = Counter((row["gender"], row["tone"]) for row in rows)
    for tone in TONE["tone"]:
        assert cells["woman", tone] / n == pytest.approx(0.1, abs=0.02), "attributes are drawn independently"


def test_random_draws_are_not_stratified() -> None:
    assert len({counts(assign(GENDER, 10, "random", seed=s), "gender")["woman"] for s in range(50)}) > 3


def test_none_steers_nothing() -> None:
    assert assign(GENDER, 3, "none") == [{}, {}, {}]
    assert assign({}, 2) == [{}, {}]


def test_rows_are_separate_dictionaries() -> None:
    rows = assign({}, 2, "none")
    rows[0]["gender"] = "woman"
    assert rows[1] == {}


# --- refusals ---


@pytest.mark.parametrize("n", [0, -1])
def test_a_number_below_one_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"n is {n}; allowed: at least 1"):
        assign(GENDER, n)


def test_an_unknown_policy_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="policy is 'fair'; allowed: none, exact, random"):
        assign(GENDER, 2, "fair")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("proportions", "message"),
    [
        ({"gender": {"woman": -0.5, "man": 1.5}}, "share of 'woman' is -0.5; allowed: 0 to 1"),
        ({"gender": {"woman": math.nan, "man": 0.5}}, "share of 'woman' is nan"),
        ({"gender": {"woman": math.inf, "man": 0.5}}, "share of 'woman' is inf"),
        ({"gender": {"woman": 0.5, "man": 0.6}}, r"shares sum to 1\.1; they must sum to 1"),
        ({"gender": {}}, "shares sum to 0"),
        ({"gender": {"women": 1.0}}, "proportions name 'women', which is not among the concepts woman, man"),
        ({"tone": {"dark": 1.0}}, "proportions are given for 'tone', but no concept of it is steered; known: gender"),
    ],
)
def test_shares_that_make_no_sense_are_refused(proportions: dict[str, dict[str, float]], message: str) -> None:
    for policy in ("exact", "random", "none"):
        with pytest.raises(ValueError, match=message):
            assign(GENDER, 4, policy, proportions=proportions)  # type: ignore[arg-type]


def test_an_attribute_without_concepts_is_refused() -> None:
    with pytest.raises(ValueError, match="there is no concept to sample from"):
        assign({"gender": []}, 2)
