"""The HTTP interface for programs, such as the Orthanc plugin: JSON, with a bearer token.

GET  /api/studies/UID            state, reason, jobs with results and deliveries
POST /api/studies/UID/complete   nothing more will come: take the study now (202)
GET  /api/health                 without a token: the process answers, and its ledger does
"""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from dicom_node.ledger import Job, Ledger, Study

from .access import bearer_is_good


def routes(ledger: Ledger, api_token: str) -> list[Route]:
    """Give the routes; each answers 401 without the token."""

    def study(request: Request) -> JSONResponse:
        found = ledger.study(request.path_params["study_uid"])
        return _unknown() if found is None else JSONResponse(_whole(ledger, found))

    def complete(request: Request) -> JSONResponse:
        study_uid = request.path_params["study_uid"]
        if not ledger.request_completion(study_uid, by="api"):
            return _unknown()
        found = ledger.study(study_uid)
        return _unknown() if found is None else JSONResponse(_state(found), 202)

    def guarded(endpoint: Any) -> Any:  # noqa: ANN401 - Starlette's endpoints
        def guard(request: Request) -> JSONResponse:
            if not bearer_is_good(request, api_token):
                told = {"error": "expected 'Authorization: Bearer TOKEN' with the node's api-token"}
                return JSONResponse(told, 401, {"WWW-Authenticate": "Bearer"})
            answer: JSONResponse = endpoint(request)
            return answer

        return guard

    def health(_: Request) -> JSONResponse:
        ledger.head()
        return JSONResponse({"status": "ok"})

    return [
        Route("/api/health", health),
        Route("/api/studies/{study_uid:path}/complete", guarded(complete), methods=["POST"]),
        Route("/api/studies/{study_uid:path}", guarded(study)),
    ]


def _unknown() -> JSONResponse:
    return JSONResponse({"error": "no such study"}, 404)


def _state(study: Study) -> dict[str, Any]:
    return {"study_uid": study.study_uid, "state": study.state, "reason": study.reason}


def _whole(ledger: Ledger, study: Study) -> dict[str, Any]:
    return {
        **_state(study),
        "instances": study.instance_count,
        "modalities": list(study.modalities),
        "last_at": study.last_at.isoformat(),
        "jobs": [_job(ledger, each) for each in ledger.jobs(study.study_uid)],
    }


def _job(ledger: Ledger, job: Job) -> dict[str, Any]:
    return {
        "id": job.id,
        "protocol": job.protocol,
        "state": job.state,
        "reason": job.reason,
        "series": list(job.series),
        "model": job.summary.get("model"),
        "results": [
            {
                "label": each.label,
                "sop_class_uid": each.sop_class_uid,
                "sop_instance_uid": each.sop_uid,
                "sha256": each.sha256,
                "held": each.held,
            }
            for each in ledger.results(job.id)
        ],
        "deliveries": [
            {
                "destination": each.destination,
                "state": each.state,
                "attempts": each.attempts,
                "detail": each.detail,
            }
            for each in ledger.deliveries(job.id)
        ],
    }
