"""The nightly run for Airflow 3: decides when, never what.

One task a stage calls the command line with the day that has just ended. Settings are environment variables of the
workers, so that this file imports nothing of the project:

    COUNTERPOISE_COMMAND    the `counterpoise` executable (default: counterpoise, from PATH)
    COUNTERPOISE_CONFIG     TOML file of the run, an absolute path
    COUNTERPOISE_SOURCE     folder of the logs, an absolute path
    COUNTERPOISE_WORKSPACE  folder of tables/, runs/ and mlflow.db, an absolute path
    COUNTERPOISE_TIME_ZONE  time zone of the business day, read when this file is parsed (default: UTC)
"""

import datetime as dt
import os
from zoneinfo import ZoneInfo

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, CronDataIntervalTimetable

STAGES = ("ingest", "featurize", "train", "calibrate", "evaluate", "register", "retrieve", "rank")
TIME_ZONE = os.environ.get("COUNTERPOISE_TIME_ZONE", "UTC")

# Values reach bash as environment variables, so no path needs quoting. A task runs in a temporary folder that Airflow
# deletes: a relative workspace would be lost with it.
COMMAND = (
    "for name in COUNTERPOISE_CONFIG COUNTERPOISE_SOURCE COUNTERPOISE_WORKSPACE; do"
    ' [[ "${{!name}}" = /* ]] || {{ echo "$name=\'${{!name}}\': workers need an absolute path"; exit 2; }};'
    " done;"
    ' exec "${{COUNTERPOISE_COMMAND:-counterpoise}}" {stage}'
    ' --config "$COUNTERPOISE_CONFIG" --source "$COUNTERPOISE_SOURCE" --workspace "$COUNTERPOISE_WORKSPACE"'
    ' --date "$COUNTERPOISE_DATE"'
)
# A run triggered without a logical date has no data interval: 26 hours before it lies in the day that the last complete
# interval (2:00 to 2:00) began on.
DAY_THAT_ENDED = (
    "{{ (data_interval_start if data_interval_start is defined else dag_run.run_after - macros.timedelta(hours=26))"
    ".astimezone(dag.timezone).strftime('%Y-%m-%d') }}"
)

with DAG(
    dag_id="counterpoise_daily",
    description="Interaction logs of the day that ended into candidate lists for the next",
    # Two hours after midnight: late events of the day have arrived. A plain cron string would have an interval of zero
    # width, so the day that ended could not be told from it.
    schedule=CronDataIntervalTimetable("0 2 * * *", timezone=TIME_ZONE),
    start_date=dt.datetime(2026, 1, 1, tzinfo=ZoneInfo(TIME_ZONE)),
    catchup=False,
    max_active_runs=1,  # stages replace tables of one workspace
    dagrun_timeout=dt.timedelta(hours=12),
    default_args={
        "retries": 2,
        "retry_delay": dt.timedelta(minutes=5),
        "retry_exponential_backoff": True,
        "max_retry_delay": dt.timedelta(hours=1),
    },
    doc_md=__doc__,
) as dag:
    previous: BashOperator | None = None
    for stage in STAGES:
        task = BashOperator(
            task_id=stage,
            bash_command=COMMAND.format(stage=stage),
            env={"COUNTERPOISE_DATE": DAY_THAT_ENDED},
            append_env=True,
            doc_md=f"`counterpoise {stage}`, see the README.",
        )
        if previous is not None:
            previous >> task
        previous = task
