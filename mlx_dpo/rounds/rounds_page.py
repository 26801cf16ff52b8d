"""rounds.html: what rounds have changed, on one page that works offline."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from mlx_dpo.judges.judge import plain_text
from mlx_dpo.reporting.charts import Chart, Series
from mlx_dpo.reporting.html_report import render_page
from mlx_dpo.rounds.round_evaluation import AnswerSet
from mlx_dpo.rounds.round_table import TABLE_ROWS, table_cells
from mlx_dpo.rounds.rounds_result import RoundsResult

NUM_EXAMPLES = 6  # prompts whose answers are shown
MAX_CHARACTERS = 1_200  # of an answer
Round = Mapping[str, Any]


def render_rounds(title: str, judge: str, result: RoundsResult, answers: Sequence[AnswerSet]) -> str:
    """Render the page.

    Args:
        title: the heading.
        judge: name of the judge.
        result: the rounds.
        answers: of the policy at the start and of each round that has trained, to the evaluation prompts.

    Returns:
        HTML; the same for the same results.
    """
    before = [f"<p class=verdict>{escape(verdict_on_rounds(result))}</p>", *_table(result.rounds, judge)]
    return render_page(title, before, rounds_charts(result.rounds), CHART_NOTE, list(_examples(answers)))


CHART_NOTE = "One point per round. Dashed: ends of 95% intervals."


def verdict_on_rounds(result: RoundsResult) -> str:
    """What came of the rounds, in a sentence or two."""
    if result.best is None:
        return f"No round has trained: {result.stopped}." if result.stopped else "No round is finished yet."
    best = next(values for values in result.rounds if values["round"] == result.best)
    win = best["against_start"]
    text = f"Round {result.best} is best: it wins {_share(win)} against the policy at the start, by the judge."
    return text + (f" Stopped since {result.stopped}." if result.stopped else "")


def _share(win: Mapping[str, Any]) -> str:
    if win["win_rate"] is None:
        return "an unknown share"
    low, high = win["win_rate_interval"]
    return f"{win['win_rate']:.1%} ({low:.1%} to {high:.1%})"


def rounds_charts(rounds: Sequence[Round]) -> list[Chart]:
    """The charts over the rounds; those of a single value are left out."""
    charts = [
        Chart("start", "Win rate against the start", "line", "round", "share", _win_rate(rounds, "against_start")),
        Chart("previous", "Win rate against the round before", "line", "round", "share", _previous(rounds)),
        Chart("score", "Score of answers", "line", "round", "mean score", _curve(rounds, _score, "evaluation prompts")),
        Chart(
            "held_out",
            "Reward accuracy on held-out pairs",
            "line",
            "round",
            "share of pairs",
            _curve(
                rounds, lambda values: (values.get("held_out") or {}).get("rewards/accuracies"), "base as reference"
            ),
        ),
        Chart("length", "Length of samples", "line", "round", "tokens", _curve(rounds, _sample("mean_tokens"), "mean")),
        Chart(
            "distinct",
            "Variety of samples",
            "line",
            "round",
            "share",
            _curve(rounds, _sample("distinct"), "different completions of a prompt"),
            "Where it falls, the judge has less to choose from.",
        ),
        Chart(
            "longer",
            "The longer completion preferred",
            "line",
            "round",
            "share of pairs",
            _curve(rounds, lambda values: values["labels"]["longer_preferred"], "chosen is longer"),
            "Above one half, length is rewarded.",
        ),
    ]
    return [chart for chart in charts if len(chart.series[0].points) > 1]


def _win_rate(rounds: Sequence[Round], key: str) -> list[Series]:
    known = [values for values in rounds if values.get(key) and values[key]["win_rate"] is not None]
    ends = [
        Series(name, [(values["round"], values[key]["win_rate_interval"][i]) for values in known], 0, dashed=True)
        for i, name in enumerate(("lower end", "upper end"))
    ]
    return [Series("win rate", [(values["round"], values[key]["win_rate"]) for values in known]), *ends]


def _previous(rounds: Sequence[Round]) -> list[Series]:
    """Without the first round, whose round before is the start."""
    return _win_rate(rounds[1:], "against_previous")


def _curve(rounds: Sequence[Round], value_of: Callable[[Round], float | None], label: str) -> list[Series]:
    points = [(values["round"], value) for values in rounds if (value := value_of(values)) is not None]
    return [Series(label, points, dashed=len(points) < 3)]  # which has markers


def _score(values: Round) -> float | None:
    return (values.get("mean_score") or {}).get("own")


def _sample(name: str) -> Callable[[Round], float | None]:
    return lambda values: values["samples"][name]


def _table(rounds: Sequence[Round], judge: str) -> Iterator[str]:
    yield f"<h2>Rounds, judged by {escape(judge)}</h2>"
    yield "<div class=scroll><table class=changes>"
    yield "<tr><th></th>" + "".join(f"<th class=number>{values['round']}</th>" for values in rounds) + "</tr>"
    for row in TABLE_ROWS:
        cells = table_cells(row, rounds)
        if any(cells):
            yield f"<tr><td>{escape(row.label)}</td>"
            yield "".join(f"<td class=number>{escape(cell)}</td>" for cell in cells) + "</tr>"
    yield "</table></div>"


def _examples(answers: Sequence[AnswerSet]) -> Iterator[str]:
    if not answers:
        return
    yield "<h2>Answers to evaluation prompts</h2>"
    for i, prompt in enumerate(answers[0].prompts[:NUM_EXAMPLES]):
        yield f"<h3>{escape(_cut(plain_text(prompt)))}</h3><div class=two>"
        for number, policy in enumerate(answers):
            name = f"round {number}" if number else "start"
            text = escape(_cut(policy.answers[i]))
            yield f"<div><small class=faint>{name}</small><div class=answer>{text}</div></div>"
        yield "</div>"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} …"
