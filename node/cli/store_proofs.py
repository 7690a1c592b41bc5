"""The commands of the store about proofs: make one, and check one without a daemon."""

import sys

import click

from node.cli.blobs import output_file
from node.cli.context import Context, echo_json, json_option, on_terminal, plain
from node.cli.store_text import brief, ns_option, when
from shoal.errors import ClientError
from shoal.store_api import PROOF_MAX, Verdict

ID_DIGITS = 64  # of a namespace's ID, and of a state root


@click.command()
@click.argument("key")
@click.option("-o", "--out", metavar="FILE", help="Write it there.")
@ns_option
@click.pass_obj
def prove(context: Context, key: str, out: str | None, namespace: str) -> None:
    """Write a proof of what KEY holds, or that it holds nothing, to FILE or standard output.

    Whoever knows the namespace's ID checks it with `shoal store verify`, without a daemon.

    Example: shoal store prove lr --out lr.proof
    """
    if out is None and on_terminal():
        raise click.UsageError("a proof is binary: --out FILE, or a pipe, takes it")
    proof = context.client().store.prove(key, namespace=namespace)
    with output_file(out) as file:
        file.write(proof)


@click.command()
@click.argument("file", metavar="FILE|-")
@click.option("--ns-id", "digits", metavar="HEX", help="The namespace's ID: no daemon is needed.")
@click.option("--ns", "namespace", metavar="NAME", help="Its name: the daemon knows the ID.")
@click.option("--root", default="", metavar="HEX", help="The state root that it must be about.")
@json_option
@click.pass_obj
def verify(
    context: Context,
    file: str,
    digits: str | None,
    namespace: str | None,
    root: str,
    as_json: bool,
) -> None:
    """Check a proof; say what it shows, what is proven and what is not. Fails (1) if it is wrong.

    Example: shoal store verify lr.proof --ns-id 8c11f0…
    """
    if (digits is None) == (namespace is None):
        raise click.UsageError("either --ns-id HEX or --ns NAME says what namespace it is about")
    known = _hash(root, "--root") if root else None
    if namespace is not None:
        digits = context.client().store.namespace(namespace).id
    namespace_id = _hash(digits or "", "--ns-id")
    document = _read(file)
    from node.control.store_proofs import verdict  # no other command needs crdt

    found = verdict(document, namespace_id, known)
    echo_json(found) if as_json else _echo(found)


def _read(file: str) -> bytes:
    try:
        if file == "-":
            data = sys.stdin.buffer.read(PROOF_MAX + 1)
        else:
            with open(file, "rb") as opened:
                data = opened.read(PROOF_MAX + 1)
    except OSError as error:
        raise click.UsageError(f"cannot read {file}: {error.strerror}") from error
    if len(data) > PROOF_MAX:
        raise ClientError(f"{file} is no proof: it is over {PROOF_MAX} B")
    return data


def _hash(text: str, option: str) -> bytes:
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) * 2 != ID_DIGITS:
        raise click.BadParameter(f"{text[:80]!r} is not {ID_DIGITS} hex digits", param_hint=option)
    return found


def _echo(found: Verdict) -> None:
    item = found.item
    click.echo(f"the proof holds: {plain(found.key)} in {plain(found.name)}")
    click.echo(f"  shows       {'nothing' if item is None else f'{item.kind}: {brief(item)}'}")
    if item is not None:
        click.echo(f"  written by  {item.author}, {when(item.written_ms)}")
    click.echo(f"  state       {found.root}")
    click.echo(f"  told by     {found.attester}, {when(found.attested_ms)}")
    for head, sentences in (("proven", found.proven), ("not proven", found.not_proven)):
        click.echo(f"{head}:")
        for sentence in sentences:
            click.echo(f"  - {plain(sentence)}")


COMMANDS: tuple[click.Command, ...] = (prove, verify)
