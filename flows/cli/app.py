"""The command `dass` itself. Each group of commands is a file beside this one and registers itself here."""

import typer

app = typer.Typer(
    name="dass",
    add_completion=False,
    rich_markup_mode="rich",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""
Prune the MLPs of a GLU language model with DaSS, measure what that cost, version and register the result.

\b
    dass init my-model --model org/name@main     make a workspace
    dass run --workspace my-model                do everything in it
    dass run -S prune.sparsity=0.6               change a setting, then run
    dass show                                    the result again
    dass report                                  the same as a page for a browser
    dass history                                 every version, and who decided what
    dass promote                                 make the newest version champion, if every rule holds
    dass verify champion                         prove it: files, ledger, weights, pattern, configuration
    dass rollback --reason "..."                 back to the champion before
    dass export-audit history.zip                who decided what and why, signed, in one file for an auditor
    dass serve --cron "0 2 * * *"                run every night at two

A workspace is a folder with params.yaml, dvc.yaml and .dvc.

\b
Exit status: 0 done, 1 a rule or a proof failed, 2 bad input, 3 infrastructure failed (a server, a
database, the disk: the same command may succeed later), 4 a fault of dass itself, 130 interrupted.

\b
DASS_TIMEOUT   seconds that one answer of MLflow, a database, a package index or the hub may take (60);
               a command waits four times as long in all. Transfers that go on are not counted.
DASS_DEBUG=1   shows the traceback of an error
""",
)
