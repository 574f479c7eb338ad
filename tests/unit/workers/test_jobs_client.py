"""Which attempt of a Ray Job a caller waits for."""

from types import SimpleNamespace

import pytest
import ray.job_submission

from workers.jobs_client import ERROR, RESULT, JobFailed, marked_line, submit_job


class Cluster:
    """A dashboard whose jobs end at once; ``rival`` is the attempt of somebody who submits a moment earlier."""

    def __init__(self, rival=None, mark=RESULT, said=None):
        self.rival, self.mark, self.said = rival, mark, said or {"answer": 42}
        self.attempts, self.listed = [], []

    def list_jobs(self):
        return self.listed

    def submit_job(self, *, entrypoint, submission_id, metadata, runtime_env):
        if self.rival is not None:
            running = SimpleNamespace(is_terminal=lambda: False)
            self.listed = [
                SimpleNamespace(submission_id=submission_id, status=running, metadata={"attempt": self.rival})
            ]
            self.attempts.append(self.rival)
            raise RuntimeError(f"Job with submission_id {submission_id} already exists.")
        assert entrypoint.endswith(metadata["attempt"])
        self.attempts.append(metadata["attempt"])

    def get_job_status(self, _):
        return SimpleNamespace(is_terminal=lambda: True)

    def get_job_logs(self, _):
        old = marked_line(RESULT, "an-earlier-attempt", {"answer": 0})
        return "\n".join([old, *(marked_line(self.mark, a, self.said) for a in self.attempts), ""])

    def get_job_info(self, _):
        return SimpleNamespace(message="done")


def submit(monkeypatch, cluster):
    monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", lambda address: cluster)
    return submit_job("http://head:8265", ["program", "an argument"], submission_id="job-1")


def test_the_result_is_of_this_attempt(monkeypatch):
    assert submit(monkeypatch, Cluster()) == {"answer": 42}


def test_who_comes_second_in_the_same_moment_joins_the_first(monkeypatch):
    cluster = Cluster(rival="theirs")
    assert submit(monkeypatch, cluster) == {"answer": 42}
    assert cluster.attempts == ["theirs"]


def test_a_refused_submission_is_an_error(monkeypatch):
    cluster = Cluster()

    def refuse(**_):
        raise RuntimeError("no space left for the working directory")

    cluster.submit_job = refuse
    with pytest.raises(RuntimeError, match="no space left"):
        submit(monkeypatch, cluster)


@pytest.mark.parametrize(("bad_input", "kind"), [(True, ValueError), (False, JobFailed)])
def test_an_error_of_the_job_is_told_by_whose_fault_it_is(monkeypatch, bad_input, kind):
    with pytest.raises(kind, match="it broke"):
        submit(monkeypatch, Cluster(mark=ERROR, said={"bad_input": bad_input, "message": "it broke"}))
