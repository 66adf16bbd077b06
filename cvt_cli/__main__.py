"""``python -m cvt_cli``, so that other launchers can start any command."""

from cvt_cli.cli import app

if __name__ == "__main__":
    app(prog_name="cvt")
