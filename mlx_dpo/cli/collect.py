"""The command `mlx-dpo collect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlx_dpo.cli.adapter_rendering import rendering_config
from mlx_dpo.cli.config_options import (
    RENDERING_SETTINGS,
    AdapterModel,
    JsonFlag,
    MaxTokens,
    Temperature,
    TopP,
    with_config_options,
)
from mlx_dpo.cli.console import print_json, print_message, print_text
from mlx_dpo.errors import UserError, Where
from mlx_dpo.utils.formatting import plural

if TYPE_CHECKING:
    from mlx_dpo.sampling.completions import SamplingParams
    from mlx_dpo.web.page_app import CollectPage
    from mlx_dpo.web.verdicts import VerdictFiles

DEFAULT_OUTPUT = "pairs.jsonl"


@with_config_options(RENDERING_SETTINGS)
def collect(
    flags: dict[str, Any],
    model: AdapterModel = None,
    adapter_path: Annotated[Path | None, typer.Option(help="Adapter folder to load onto the model.")] = None,
    prompts: Annotated[
        str | None,
        typer.Option(help="File of prompts to go through: one per line (.txt), or rows with a prompt (.jsonl, .csv)."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help=f"JSONL file that preferences are appended to. Default: {DEFAULT_OUTPUT}; with --review, "
            "FILE's name with the labeller's.",
            show_default=False,
        ),
    ] = None,
    review: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Judge the completions of this file again, blind and without a model: any row format."
        ),
    ] = None,
    labeller: Annotated[
        str | None,
        typer.Option(
            help="Your name, for each row's column `labeller`. Default with --review: the system's user name."
        ),
    ] = None,
    repeat: Annotated[
        float, typer.Option(min=0, max=1, help="With --review: share of the comparisons to show a second time.")
    ] = 0.0,
    num_answers: Annotated[int, typer.Option(min=1, max=4, help="Answers to each prompt.")] = 2,
    max_tokens: MaxTokens = 512,
    temp: Temperature = 0.9,
    top_p: TopP = 1.0,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of 127.0.0.1; 0 for any that is free.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
    json: JsonFlag = False,
) -> None:
    """Make preference data in a page: ask the model, and choose the better answer.

    The page is served to this machine alone. Each choice is appended to --output, which `mlx-dpo train --data` reads as
    it is; ties make no pair. Thumbs on single answers go to a file beside it, NAME.labels.jsonl, for --loss kto.
    Ctrl-C ends it; the same command resumes, and a page that is still open reconnects.

    The page also trains on the file, in a process of its own that goes on when the server ends, and compares the model
    with and without the adapter, blind.

    With --review several people judge one file, pairs or the output of `mlx-dpo sample`, each with a file of verdicts
    of their own; `mlx-dpo label --merge` makes pairs of them, and says how far these people agree.

    Examples:
      mlx-dpo collect --model ./Qwen3-4B-4bit
      mlx-dpo collect --model ./Qwen3-4B-4bit --prompts prompts.txt --output pairs.jsonl --num-answers 4
      mlx-dpo collect --adapter-path adapters --no-browser --port 8000
      mlx-dpo collect --review pairs.jsonl --labeller ana --output verdicts.jsonl
      mlx-dpo collect --review samples.jsonl --labeller ben --repeat 0.05
    """
    try:
        from mlx_dpo.web.collect_server import serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "markdown_it"):
            raise
        raise UserError(f"the page needs {error.name}", hint="pip install 'mlx-dpo[web]'") from None
    from mlx_dpo.sampling.completions import SamplingParams
    from mlx_dpo.web.verdicts import VerdictFiles

    if review is not None:
        if model or adapter_path or prompts:
            hint = "Leave --model, --adapter-path and --prompts out."
            raise UserError("judges what is in the file, without a model", field="review", hint=hint)
        page = _review_page(review, output, labeller, repeat)
    elif repeat:
        raise UserError("shows comparisons of --review again", field="repeat", hint="Name a file with --review.")
    else:
        params = SamplingParams(max_tokens, temp, top_p)
        verdicts = VerdictFiles(output or Path(DEFAULT_OUTPUT), labeller)
        page = _answer_page(model, adapter_path, flags, prompts, verdicts, params, num_answers)
    written = page.verdicts.preferences.path

    def show_address(url: str) -> None:
        if json:
            print_json({"url": url, "output": str(written)})
        else:
            print_text(url)
            print_message(f"Preferences are appended to {written}. Ctrl-C ends the server.")

    try:
        serve(page, port=port, open_browser=browser, on_ready=show_address)
    except SystemExit:  # a stop signal
        print_message(f"Ended. {written} has {plural(page.verdicts.counts()['preferences'], 'preference')}.")
        raise


def _answer_page(
    model: str | None,
    adapter_path: Path | None,
    flags: dict[str, Any],
    prompts: str | None,
    verdicts: VerdictFiles,
    params: SamplingParams,
    num_answers: int,
) -> CollectPage:
    """The page that asks a model."""
    from mlx_dpo.adapters.adapter_folder import adapter_base_model, require_policy
    from mlx_dpo.data.conversations import prompt_messages
    from mlx_dpo.data.prompt_files import read_prompts
    from mlx_dpo.web.answer_generator import AnswerGenerator
    from mlx_dpo.web.page_app import CollectPage
    from mlx_dpo.web.verdicts import are_messages

    if adapter_path is not None:
        require_policy(adapter_path)
        model = model or adapter_base_model(adapter_path)
    if model is None:
        hint = "Name a model folder or Hub id with --model; to judge a file without one, --review FILE."
        raise UserError("no model given", field="model", hint=hint)
    rendering = rendering_config(adapter_path, flags)
    conversations = [prompt_messages("prompt", row.prompt) for row in (read_prompts(prompts) if prompts else ())]
    for number, messages in enumerate(conversations, 1):
        if not are_messages(messages):
            raise UserError(
                f"prompt {number} can't be asked: it must be turns of text, the user's last", where=Where(str(prompts))
            )
    generator = AnswerGenerator(
        model, adapter_path, raw=rendering.raw, template_kwargs=rendering.chat_template_kwargs or {}
    )
    return CollectPage(generator, verdicts, conversations, params, num_answers)


def _review_page(file: str, output: Path | None, labeller: str | None, repeat: float) -> CollectPage:
    """The page that reviews a file; which rows are left out is printed."""
    from mlx_dpo.web.review_page import open_review_page

    page = open_review_page(file, output, labeller, repeat)
    assert page.review is not None
    review = page.review.progress.review
    if review.num_bad:
        print_message(f"{plural(review.num_bad, 'row')} can't be read, the first: {review.problem}")
    if review.num_single:
        print_message(f"{plural(review.num_single, 'row')} without two different completions: nothing to compare.")
    return page
