//! Errors as `metav1.Status`, which kubectl and client libraries understand.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::backend::AccessError;
use crate::receipts::ShelfError;
use crate::store::StoreError;

/// An error response.
#[derive(Debug)]
pub struct ApiStatus {
    code: StatusCode,
    reason: &'static str,
    message: String,
}

impl ApiStatus {
    pub(super) fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into() }
    }

    pub(super) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "the request does not come from the API server")
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message)
    }
}

impl From<AccessError> for ApiStatus {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::NoJob(_) => Self::not_found(error.to_string()),
            AccessError::Gone => Self::new(StatusCode::GONE, "Gone", error.to_string()),
            AccessError::Unavailable(_) => Self::unavailable(error.to_string()),
        }
    }
}

impl From<StoreError> for ApiStatus {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::UnknownFile(_) | StoreError::UnknownJob(_) => Self::not_found(error.to_string()),
            other => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", other.to_string()),
        }
    }
}

impl From<ShelfError> for ApiStatus {
    fn from(error: ShelfError) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", error.to_string())
    }
}

impl IntoResponse for ApiStatus {
    fn into_response(self) -> Response {
        let body = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code.as_u16(),
        });
        (self.code, Json(body)).into_response()
    }
}
