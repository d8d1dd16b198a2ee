"""The nightly run for Airflow 3: decides when, never what.

One task a stage calls the command line with the day that has just ended; `watch` looks at the night however it ended.
Settings are environment variables of the workers, so that this file imports nothing of the project:

    COUNTERPOISE_COMMAND               the `counterpoise` executable (default: counterpoise, from PATH)
    COUNTERPOISE_CONFIG                TOML file of the run, an absolute path
    COUNTERPOISE_SOURCE                folder of the logs, an absolute path, or a URI
    COUNTERPOISE_WORKSPACE             folder of tables/, runs/ and mlflow.db, an absolute path
    COUNTERPOISE_TIME_ZONE             time zone of the business day, read when this file is parsed (default: UTC)
    COUNTERPOISE_FULL_RETRAIN_WEEKDAY  day of data that trains from scratch, others begin from the champion; monday to
                                       sunday (default), or always, which a workspace without a champion needs
    COUNTERPOISE_ALERT_COMMAND         command that gets a failure as JSON on its standard input (default: none)

A task that ends with exit code 2 (something that a user can fix) is tried once more, for what passes by itself: a
registry that restarts, another command that holds the workspace. Ingest, which waits for the log of the day, is tried
every 15 minutes of an hour. Anything else, such as a worker that was killed, is tried twice more; training goes on
from where it was.
"""

import datetime as dt
import json
import logging
import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any
from zoneinfo import ZoneInfo

from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Asset, BaseOperator, CronDataIntervalTimetable
from airflow.sdk.exceptions import AirflowException, AirflowFailException

LOG = logging.getLogger("counterpoise.dag")
STAGES = ("ingest", "featurize", "train", "calibrate", "evaluate", "register", "retrieve", "rank", "publish")
WATCH = "watch"
MADE = {"ingest": "interactions", "featurize": "examples", "rank": "candidates", "publish": "feed"}
ASSETS = {stage: Asset(f"counterpoise_{made}", uri=f"x-counterpoise://{made}") for stage, made in MADE.items()}
"""What other DAGs can be scheduled on; the names hold wherever the workspace is."""

USER_ERROR = 2
USER_ERROR_TRIES = 2
INGEST_RETRIES, INGEST_RETRY_DELAY = 4, dt.timedelta(minutes=15)
ALERT_SECONDS = 60
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
ALWAYS = "always"
TIME_ZONE = os.environ.get("COUNTERPOISE_TIME_ZONE", "UTC")
RETRAINED_ON = os.environ.get("COUNTERPOISE_FULL_RETRAIN_WEEKDAY", "sunday").lower()
if RETRAINED_ON not in {*WEEKDAYS, ALWAYS}:
    raise ValueError(
        f"COUNTERPOISE_FULL_RETRAIN_WEEKDAY={RETRAINED_ON!r}: expected one of {', '.join(WEEKDAYS)}, {ALWAYS}"
    )

# A run triggered without a logical date has no data interval: 26 hours before it lies in the day that the last complete
# interval (2:00 to 2:00) began on.
DAY_THAT_ENDED = (
    "{{ (data_interval_start if data_interval_start is defined else dag_run.run_after - macros.timedelta(hours=26))"
    ".astimezone(dag.timezone).strftime('%Y-%m-%d') }}"
)


def command_line(stage: str, date: str, environment: Mapping[str, str]) -> list[str]:
    """Return the command of a stage for a day of data.

    A task runs in a temporary folder that Airflow deletes: a relative workspace would be lost with it.

    Raises:
        AirflowFailException: a path is missing or relative.
    """
    options = [environment.get("COUNTERPOISE_COMMAND", "counterpoise"), stage]
    for option in ("config", "source", "workspace"):
        name = f"COUNTERPOISE_{option.upper()}"
        value = environment.get(name, "")
        if not PurePosixPath(value).is_absolute() and not (option == "source" and "://" in value):
            raise AirflowFailException(f"{name}={value!r}: workers need an absolute path")
        options += [f"--{option}", value]
    full = RETRAINED_ON in {ALWAYS, WEEKDAYS[dt.date.fromisoformat(date).weekday()]}
    return [*options, "--date", date, *([] if full else ["--warm-start"])]


class Stage(BaseOperator):
    """Runs a stage; its exit code says whether another try may help."""

    template_fields = ("date",)

    def __init__(self, *, date: str = DAY_THAT_ENDED, user_error_tries: int = USER_ERROR_TRIES, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.date, self.user_error_tries = date, user_error_tries
        self.hook = SubprocessHook()

    def execute(self, context: Any) -> None:
        """Run the command.

        Raises:
            AirflowFailException: what a user has to fix.
            AirflowException: any other failure, to be tried again.
        """
        done = self.hook.run_command(command_line(self.task_id, self.date, os.environ))
        if done.exit_code:
            final = done.exit_code == USER_ERROR and context["ti"].try_number >= self.user_error_tries
            raise (AirflowFailException if final else AirflowException)(f"exit code {done.exit_code}: {done.output}")
        for asset in self.outlets:
            context["outlet_events"][asset].extra = {"date": self.date}

    def on_kill(self) -> None:
        """Let the command end well: it takes a signal as an interruption."""
        self.hook.send_sigterm()


def alert(context: Any) -> None:
    """Tell of a failure: one line of JSON in the log, and on the standard input of COUNTERPOISE_ALERT_COMMAND."""
    run, instance = context["dag_run"], context.get("ti")
    told = {
        "event": "counterpoise night failed",
        "dag_run": run.run_id,
        "task": getattr(instance, "task_id", None),
        "date": getattr(getattr(instance, "task", None), "date", None),
        "try": getattr(instance, "try_number", None),
        "error": str(context.get("exception") or context.get("reason")),
        "log": getattr(instance, "log_url", None),
    }
    text = json.dumps(told)
    LOG.error("%s", text)
    if command := shlex.split(os.environ.get("COUNTERPOISE_ALERT_COMMAND", "")):
        subprocess.run(command, input=f"{text}\n", text=True, check=True, timeout=ALERT_SECONDS)  # noqa: S603  # no shell


def alert_of_timeout(context: Any) -> None:
    """Tell of a night that took too long; of a failed task that task tells."""
    if context.get("reason") == "timed_out":
        alert(context)


with DAG(
    dag_id="counterpoise_daily",
    description="Interaction logs of the day that ended into published lists for the next",
    # Two hours after midnight: late events of the day have arrived. A plain cron string would have an interval of zero
    # width, so the day that ended could not be told from it.
    schedule=CronDataIntervalTimetable("0 2 * * *", timezone=TIME_ZONE),
    start_date=dt.datetime(2026, 1, 1, tzinfo=ZoneInfo(TIME_ZONE)),
    catchup=False,
    max_active_runs=1,  # stages replace tables of one workspace
    dagrun_timeout=dt.timedelta(hours=12),
    on_failure_callback=alert_of_timeout,
    default_args={
        "retries": 2,
        "retry_delay": dt.timedelta(minutes=5),
        "retry_exponential_backoff": True,
        "max_retry_delay": dt.timedelta(hours=1),
        "on_failure_callback": alert,
    },
    doc_md=__doc__,
) as dag:
    waits = {
        "retries": INGEST_RETRIES,
        "retry_delay": INGEST_RETRY_DELAY,
        "retry_exponential_backoff": False,
        "user_error_tries": INGEST_RETRIES + 1,
    }
    previous: BaseOperator | None = None
    for stage in STAGES:
        outlets = [ASSETS[stage]] if stage in ASSETS else []
        doc = f"`counterpoise {stage}`, see the README."
        task = Stage(task_id=stage, outlets=outlets, doc_md=doc, **(waits if stage == "ingest" else {}))
        if previous is not None:
            previous >> task
        previous = task
    watch = Stage(task_id=WATCH, trigger_rule="all_done", doc_md="`counterpoise watch`: however the night ended.")
    # The last tasks decide what becomes of the night, and watch ends well after a failure: this one does not.
    night = EmptyOperator(task_id="night", on_failure_callback=None)
    previous >> [watch, night]
    watch >> night
