"""`upshift tls`: certificates for development."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def tls() -> None:
    """Certificates for TLS on your own machine.

    \b
    upshift tls dev-cert
    upshift tls dev-cert gateway.lan 192.168.1.20
    upshift tls dev-cert --client alice
    """


@tls.command("dev-cert")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--folder", type=click.Path(path_type=Path, file_okay=False), default=Path("tls"), show_default=True, help="Where."
)
@click.option("--client", metavar="NAME", help="A client's certificate instead, for `tls.client_auth`.")
def dev_cert(names: tuple[str, ...], folder: Path, client: str | None) -> None:
    """Make a certificate for NAMEs (default: localhost and its addresses), signed by an authority of your own.

    The authority is made once and used again, so it has to be trusted only once. Not for the internet: there
    certificates come from a public authority (docs/gateway.md names ways).

    \b
    upshift tls dev-cert
    upshift tls dev-cert gateway.lan 192.168.1.20 --folder /etc/upshift/tls
    upshift tls dev-cert --client alice
    """
    from gateway.devcert import CannotMake, make_client, make_server  # noqa: PLC0415 - help must be quick

    if client is not None and names:
        raise click.UsageError("a client's certificate has one name: the one behind --client")
    try:
        if client is not None:
            made = make_client(folder, client)
        else:
            made = make_server(folder, names or ("localhost", "127.0.0.1", "::1"))
    except CannotMake as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"certificate  {made.certificate}\nkey          {made.key}\nauthority    {made.authority}")
    if client is not None:
        click.echo(f"\ncurl --cert {made.certificate} --key {made.key} --cacert {made.authority} https://…")
        click.echo(f"The gateway asks for it with  client_ca: {made.authority}, client_auth: required  under tls.")
        return
    click.echo(f"\ntls: {{certificate: {made.certificate}, key: {made.key}}}      # in the configuration")
    if made.new_authority:
        click.echo(_TRUST.format(authority=made.authority.absolute()))


_TRUST = """
Clients have to trust the authority, each in its way:
  curl                  --cacert {authority}
  openai (Python)       SSL_CERT_FILE={authority}
  openai (Node.js)      NODE_EXTRA_CA_CERTS={authority}
  Debian, Ubuntu        sudo cp {authority} /usr/local/share/ca-certificates/upshift.crt && sudo update-ca-certificates
  Fedora                sudo trust anchor {authority}
  macOS                 sudo security add-trusted-cert -d -r trustRoot -k /Library/Keychains/System.keychain {authority}
Whoever has its key (ca.key beside it) can pose as any site to those who trust it: keep it here, delete it when done."""
