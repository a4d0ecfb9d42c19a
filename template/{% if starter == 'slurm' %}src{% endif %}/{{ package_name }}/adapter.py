"""The adapter: how a job gets on to Slurm, how it is seen there, and how it is ended.

By Slurm's own commands: https://slurm.schedmd.com/sbatch.html, squeue.html, sacct.html, scancel.html, scontrol.html.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from batchport import BatchWorkerAdapterBase, Check, CommandError, JobSpec, JobStatus, Limits, Reason
from batchport.commands import run

from .check import checks
from .options import Options
from .states import refusal, status


class Adapter(BatchWorkerAdapterBase):
    """Puts jobs on a Slurm cluster. Ids in, statuses out: it keeps no table of jobs and never retries."""

    contract = 1
    options_type = Options

    def __init__(self, options: Options) -> None:
        self.options = options
        self.logs = Path(options.logs).expanduser().absolute()

    async def open(self, worker: str) -> None:  # noqa: ARG002 - jobs are told apart by their names
        config = await slurm("scontrol", "show", "config")
        self.has_archive = "accounting_storage/none" not in config
        self.limits = Limits(
            name_length=128,
            inline_bytes=90 << 10,  # base64 in one variable, of which Linux takes 131,072 bytes
            array_size=max(1, *map(int, re.findall(r"MaxArraySize *= (\d+)", config))),  # indices are below it
            array_index="SLURM_ARRAY_TASK_ID",
            settle_s=60,  # the archive may be as late
        )
        await run("bash", "-c", 'mkdir -p "$0" && find "$0" -name "*.log" -mtime +7 -delete', str(self.logs))

    async def submit_job(self, job: JobSpec) -> str:
        try:
            said = await slurm("sbatch", "--parsable", *self.flags(job), stdin=job.script)
        except CommandError as error:
            raise refusal(error) from None  # it has all the words
        return said.strip().partition(";")[0]  # the cluster's name may follow

    def flags(self, job: JobSpec) -> list[str]:
        """Return what sbatch is asked for; the user's `extra` has the last word, and None there removes a flag."""
        flags = {
            "job-name": job.name,
            "output": self.logs / ("%A_%a.log" if job.size > 1 else "%j.log"),
            "export": "ALL",
            "no-requeue": True,
            "array": job.size > 1 and f"0-{job.size - 1}",
            "ntasks": 1,
            "cpus-per-task": job.resources.cpus,
            "mem": job.resources.memory_mib and f"{job.resources.memory_mib}M",
            "gres": job.resources.gpus and f"gpu:{job.resources.gpus}",
            "time": job.resources.time_limit_s and -(-job.resources.time_limit_s // 60),  # in minutes
            "partition": self.options.partition,
            "account": self.options.account,
            "qos": self.options.qos,
            "constraint": self.options.constraint,
            **job.resources.extra,
        }
        return [f"--{flag}" if value is True else f"--{flag}={value}" for flag, value in flags.items() if value]

    async def poll_jobs(self, job_ids: Sequence[str]) -> Iterable[JobStatus]:
        queued = await self.queue()
        gone = set(job_ids).difference(name for each in queued for name in (each.job_id, each.job_id.partition("_")[0]))
        return queued + (await self.archive(f"--jobs={','.join(sorted(gone))}") if gone else [])

    async def cancel_job(self, job_id: str) -> None:
        await self.cancel_jobs([job_id])

    async def cancel_jobs(self, job_ids: Sequence[str]) -> None:
        await slurm("scancel", "--quiet", *job_ids)

    async def find_jobs(self, names: Sequence[str]) -> Iterable[tuple[str, str]]:
        wanted = f"--name={','.join(names)}"
        found = await self.queue(wanted) + await self.archive(wanted, "--starttime=now-7days")
        return {(each.name or "", each.job_id.partition("_")[0]) for each in found}

    async def inspect_job(self, job_id: str) -> JobStatus | None:
        for each in await self.poll_jobs([job_id]):
            if each.job_id == job_id:
                printed = await run("tail", "-c", "4096", str(self.logs / f"{job_id}.log"), ok=(0, 1))
                # Without cgroups Slurm only says so there, and the job is just FAILED.
                over = re.search("slurmstepd.*xceeded .*memory limit", printed) and Reason.OUT_OF_MEMORY
                return replace(
                    each, reason=each.reason or over, evidence=f"{each.evidence}\n{printed or '(no output)'}"
                )
        return None

    def element_id(self, job_id: str, index: int) -> str:
        return f"{job_id}_{index}"

    async def check(self) -> Iterable[Check]:
        return await checks(self.options, self.logs, slurm)

    async def queue(self, *wanted: str) -> list[JobStatus]:
        """Return what squeue says: of jobs that wait or run, and of those that ended minutes ago."""
        said = await slurm(
            *("squeue", "--me", "--array", "--states=all", "--noheader"),
            *("--Format=JobArrayID:|,State:|,Name:|,exit_code:|,Reason:|,NodeList:|", *wanted),
        )
        return [status(line) for line in said.splitlines()]

    async def archive(self, *wanted: str) -> list[JobStatus]:
        """Return what sacct says of jobs that ended, where the cluster keeps accounts; it may hold others for ever."""
        said = self.has_archive and await slurm(
            *("sacct", "--allocations", "--noheader", "--parsable2"),
            *("--format=JobID,State,JobName,ExitCode,Reason,NodeList,End", *wanted),
        )
        return [status(line) for line in (said or "").splitlines() if not line.endswith("|Unknown")]


async def slurm(*command: str, stdin: str = "") -> str:
    """Run one of Slurm's commands, without what a job that the worker itself runs in has set for them."""
    return await run(
        *command,
        stdin=stdin,
        env={key: os.environ[key] for key in os.environ if not re.match("(SLURM|SQUEUE|SACCT|SCANCEL)_(?!CONF$)", key)},
    )
