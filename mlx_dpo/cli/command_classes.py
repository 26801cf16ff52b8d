"""Commands and groups of commands: their help page, their errors, and what is completed in a shell."""

from __future__ import annotations

import textwrap
from typing import Any

from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

from mlx_dpo.cli.console import print_message, stdout_console
from mlx_dpo.cli.help_page import help_page, split_help
from mlx_dpo.cli.usage_errors import click_errors, display_name, no_such, usage_error
from mlx_dpo.config import TrainConfig
from mlx_dpo.distributed.rank_environment import is_main_process
from mlx_dpo.errors import RowError, UserError
from mlx_dpo.utils.mlx_backend import backend_error

MAX_COMPLETION_HELP = 70  # characters


class AppCommand(TyperCommand):
    """A command with our help page and errors."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help page."""
        write_help(self, ctx, formatter, self.loss_defaults())

    def loss_defaults(self) -> dict[str, str]:
        """Defaults by option that come from the losses."""
        return {}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments. Raises `UserError` for what click refuses."""
        typed = list(args)
        try:
            return super().parse_args(ctx, args)
        except click_errors.UsageError as error:
            values = self._typed_values(ctx, typed) if isinstance(error, click_errors.BadParameter) else {}
            raise usage_error(error, self, ctx, values) from None

    def invoke(self, ctx: Any) -> Any:
        """Run the command, with LM Studio's folder for a model that only it has.

        Raises:
            UserError: the command failed; an error of a setting names the option.
        """
        try:
            _take_from_lm_studio(ctx.params)
            return super().invoke(ctx)
        except UserError as error:
            if error.field and error.where is None and not isinstance(error, RowError):
                options = {p.name: display_name(p) for p in self.params if p.param_type_name == "option"}
                error.amend(field=options.get(error.field.replace("-", "_")))
            raise

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """The options that begin with a text, each with the first sentence of its help."""
        return short_helps(super().shell_complete(ctx, incomplete))

    def _typed_values(self, ctx: Any, args: list[str]) -> dict[str, Any]:
        """What was typed, by parameter."""
        values, _, _ = self.make_parser(ctx).parse_args(args)
        return dict(values)


class LossDefaultsCommand(AppCommand):
    """A command whose help shows the defaults of loss settings, which are in the signatures of the losses."""

    def loss_defaults(self) -> dict[str, str]:
        """The defaults of all losses, or of the default one if there is no --loss.

        Only --help pays for importing the losses, which import mlx; without a backend of mlx it shows none.
        """
        try:
            from mlx_dpo.cli.loss_defaults import loss_default_text
            from mlx_dpo.objectives import LOSS_FUNCTIONS
        except ImportError as error:
            if backend_error(error) is None:
                raise
            return {}
        names = [str(parameter.name) for parameter in self.params]
        if "loss" in names:
            return {name: loss_default_text(name) for name in names}
        return {name: str(value) for name, value in LOSS_FUNCTIONS[TrainConfig.loss].settings.items()}


class AppGroup(TyperGroup):
    """A group of commands with our help page and errors."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help page."""
        write_help(self, ctx, formatter, {})

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments. Raises `UserError` for what click refuses."""
        try:
            return super().parse_args(ctx, args)
        except click_errors.NoArgsIsHelpError:
            raise
        except click_errors.UsageError as error:
            raise usage_error(error, self, ctx, {}) from None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that is called. Raises `UserError`."""
        if args[0] not in self.commands and not ctx.resilient_parsing:
            kind = "option" if args[0].startswith("-") else "command"
            raise no_such(args[0], kind, list(self.commands), ctx.command_path)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """The commands and options that begin with a text, each with the first sentence of its help."""
        items = super().shell_complete(ctx, incomplete)
        for item in items:
            if command := self.commands.get(item.value):
                item.help = " ".join(split_help(command.help or "")[0][:1])
        return short_helps(items)


def _take_from_lm_studio(values: dict[str, Any]) -> None:
    """Replace publisher/name in --model by LM Studio's folder, if the Hub cache has no such model."""
    name = values.get("model")
    if not name:
        return
    from mlx_dpo.discovery.installed_models import find_in_lm_studio

    if folder := find_in_lm_studio(name):
        if is_main_process():
            print_message(f"{name} is not in the Hub cache; the model is LM Studio's, in {folder}.")
        values["model"] = str(folder)


def write_help(command: Any, ctx: Any, formatter: Any, defaults: dict[str, str]) -> None:
    """Write the help page of a command, with colors where stdout shows them."""
    with stdout_console.capture() as capture:
        stdout_console.print(help_page(command, ctx, stdout_console.width, defaults), soft_wrap=True, end="")
    formatter.write(capture.get())


def short_helps(items: list[Any]) -> list[Any]:
    """Completions with the first sentence of their help, in one line: fish takes another line for another completion.

    typer reads the help as Rich's markup, and breaks it at 80 columns.
    """
    for item in items:
        if item.help:
            sentence = item.help.partition(". ")[0].rstrip(".").replace("'", "’")  # zsh would drop it
            item.help = escape(textwrap.shorten(sentence, MAX_COMPLETION_HELP, placeholder=" ..."))
    return items
