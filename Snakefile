"""The batch: all notebooks with all parameters of Tables I and II.

    make plan                                                       # what would be run
    make reproduce                                                  # quick profile, synthetic images, all cores
    make reproduce PROFILE=paper DATA=data/isic2018                 # the paper's settings
    snakemake --profile workflow/local --cores $(python -I alutils/system/cores.py) --config profile=study \
        strategies="random entropy" overrides="{epochs: 2}"         # every setting: workflow/batch.py
    snakemake --profile workflow/slurm --config profile=paper data=/data/isic2018       # one Slurm job per run

A job is run again when its parameters, its code (workflow/code_hash.py) or the description.yaml beside its data
change, not when prose does. The executed notebooks are logs, so that a failed one stays; the outputs are small marks, so
that a job that was stopped finds its files and goes on.
"""

import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, f"{workflow.basedir}/workflow")
from batch import SINGLE, Batch, ConfigError, as_typed, check_for_cluster
from watch import Watch, say_at_the_end

from alutils.data.description import find_description
from alutils.system.checks import DataError
from alutils.system.files import write_text

try:
    if workflow.is_main_process and workflow.resource_settings.nodes:  # --jobs, which is a cluster's
        check_for_cluster(workflow.config_settings.config_args)
    batch = Batch(as_typed(config, sys.argv))
    if workflow.is_main_process and batch.data:  # what cannot be recognised is refused before any job starts
        find_description(Path(batch.data))
except (ConfigError, DataError) as error:
    sys.exit(f"error: {error}")
if workflow.is_main_process:
    print(f"\n{batch.plan}\n", file=sys.stderr)
    stopped = say_at_the_end()

RUN = "{sys.executable:q} {workflow.basedir:q}/workflow/run_notebook.py {params.job:q} {batch.runs:q} "
DONE = f"{batch.runs}/{{}}/done.json"


def job_of(notebook):
    """A function, because Snakemake would look for wildcards in a text."""
    return lambda wildcards: batch.job("/".join([notebook, *wildcards]))


rule all:
    input:
        [DONE.format(name) for name in batch.names],
        f"{batch.figures}/summary.md",
    message:
        f"figures and tables are in {batch.figures}, executed notebooks and records in {batch.runs}"


for notebook in SINGLE:

    rule:
        name:
            notebook
        output:
            DONE.format(notebook),
        log:
            f"{batch.runs}/{notebook}.ipynb",
        params:
            job=job_of(notebook),
        priority: 1  # what is wrong with the data shows at once
        message:
            notebook
        shell:
            RUN + "{batch.runs_per_gpu}"


for notebook in batch.runs_of:

    rule:
        name:
            notebook
        output:
            DONE.format(f"{notebook}/{{run}}"),
        log:
            f"{batch.runs}/{notebook}/{{run}}.ipynb",
        wildcard_constraints:
            run="[^/]+",
        params:
            job=job_of(notebook),
        message:
            f"{notebook}/{{wildcards.run}}"
        shell:
            RUN + "{batch.runs_per_gpu}"


rule:
    name:
        "06_results"
    input:
        [DONE.format(f"{notebook}/{run}") for notebook, runs in batch.runs_of.items() for run in runs],
    output:
        DONE.format("06_results"),
        f"{batch.figures}/summary.md",
    log:
        f"{batch.runs}/06_results.ipynb",
    params:
        job=job_of("06_results"),
    resources:
        gpu=0,
    message:
        "06_results"
    shell:
        RUN + "0"


watches = []


onstart:
    if workflow.is_main_process:
        for folder, text in batch.readmes.items():
            with suppress(OSError):  # the first job that writes there says what is wrong
                write_text(f"{folder}/README.md", text)
        watches.append(Watch(batch))
        watches[0].start()


onsuccess:
    for watch in watches:
        watch.end()


onerror:
    for watch in watches:
        watch.end()
    if workflow.is_main_process and not stopped.is_set():
        print(batch.unfinished, file=sys.stderr)
