"""`shoal chat`: a conversation with a served model, in the terminal or from a script.

Without a terminal each line of standard input is a message, answers go to standard output, and the
first error ends it. The prompt's prefix is kept by the stages, so a turn costs its own tokens only.
"""

import importlib
import select
import sys
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import click

from node.cli.answer_text import answer_options, echo_route, shown, to_options
from node.cli.context import Context, on_terminal
from node.cli.models import names_of
from shoal import models as served
from shoal.client import Client
from shoal.errors import ClientError
from shoal.models import Answer, AnswerOptions

PASTE_S = 0.05  # seconds in which the next line of a paste is there; nobody types so fast
PROMPT = "> "
HELP = """\
/clear          forget what was said
/system TEXT    say how the model shall be; without TEXT, nothing
/route          how the last answer came about
/quit           end (Ctrl-D too); Ctrl-C stops an answer"""


@dataclass
class Conversation:
    """What was said so far, and with what it goes on."""

    client: Client
    options: AnswerOptions
    system: str = ""
    messages: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    last: Answer = field(default_factory=lambda: Answer(""))

    def ask(self, text: str) -> Generator[str]:
        """Yield the answer to a message as it comes.

        What was said stays, also if the iterator is closed early; a message without any answer is
        taken back. Raises ClientError.
        """
        asked = [("system", self.system)] if self.system else []
        asked += [*self.messages, ("user", text)]
        said = ""
        try:
            for piece in served.converse(self.client, asked, **self.options):
                self.last = piece
                said += piece.text
                yield piece.text
        finally:
            if said:
                self.messages += [("user", text), ("assistant", said)]

    def command(self, line: str) -> bool:
        """Do what a line that begins with / says; False ends the conversation."""
        word, _, rest = line[1:].partition(" ")
        match word:
            case "quit" | "exit":
                return False
            case "clear":
                self.messages = []
            case "system":
                self.system = rest.strip()
            case "route" if self.last.trace is not None:
                echo_route(self.last.trace, self.last.usage, names_of(self.client))
            case "route":
                click.echo("nothing was answered yet", err=True)
            case _:
                click.echo(HELP, err=True)
        return True


@click.command()
@click.argument("model", default="")
@click.option("--system", default="", help="How the model shall be.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Of one answer, at most.")
@answer_options
@click.pass_obj
def chat(context: Context, /, model: str, system: str, **options: Any) -> None:
    """Talk with a served model; /help says what else can be done.

    Without a terminal each line of standard input is a message.
    """
    asked = to_options(model=model, **options)
    conversation = Conversation(context.client(), asked, system)
    if sys.stdin.isatty():
        _talk(conversation)
    else:
        for line in sys.stdin:
            if not _take(conversation, line.strip()):
                return


def _talk(conversation: Conversation) -> None:
    """Read from a person until they have enough."""
    importlib.import_module("readline")  # it gives `input` its editing and its history

    while True:
        try:
            text = _read_message()
        except EOFError:
            click.echo(err=True)
            return
        except KeyboardInterrupt:
            click.echo("\n(Ctrl-D or /quit ends)", err=True)
            continue
        try:
            if not _take(conversation, text):
                return
        except KeyboardInterrupt:
            click.echo(err=True)
        except ClientError as error:
            click.echo(
                f"error: {error}" + (f"\n  try: {error.hint}" if error.hint else ""), err=True
            )


def _read_message() -> str:
    """Read a line, and with it what else a paste has brought."""
    text = input(PROMPT)
    while select.select([sys.stdin], [], [], PASTE_S)[0]:
        text += "\n" + input()
    return text.strip()


def _take(conversation: Conversation, text: str) -> bool:
    """Answer one message; False ends the conversation."""
    if text.startswith("/"):
        return conversation.command(text)
    if text:
        answer = conversation.ask(text)
        try:
            for piece in answer:
                click.echo(shown(piece), nl=False)
                sys.stdout.flush()
        finally:
            answer.close()
        click.echo()
        if on_terminal() and conversation.last.finish_reason == "length":
            click.echo("(cut at --max-tokens)", err=True)
    return True


COMMANDS: dict[str, click.Command] = {"chat": chat}
