//! The OpenAPI description, grown from the table of routes. The types of bodies are named, not spelled out:
//! their definition is `pipelines/types/src/api.rs` and `worker.rs`.

use std::sync::LazyLock;

use axum::http::header;
use axum::response::IntoResponse;
use serde_json::{Map, Value, json};

use crate::routes::{Route, Who, all};

static TEXT: LazyLock<String> = LazyLock::new(text);

/// `GET /api/v1/openapi.json`
pub(crate) async fn serve() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], TEXT.as_str())
}

/// The description as it is checked in.
pub(crate) fn text() -> String {
    let described = describe(&all());
    let mut text = serde_json::to_string_pretty(&described).expect("a JSON value can be written");
    text.push('\n');
    text
}

fn describe(routes: &[Route]) -> Value {
    let mut paths = Map::<String, Value>::new();
    let mut schemas = Map::<String, Value>::new();
    for route in routes {
        let entry = paths.entry(route.path.replace("{*", "{")).or_insert_with(|| json!({}));
        entry[route.method.as_str().to_lowercase()] = operation(route, &mut schemas);
    }
    schemas.insert("Problem".into(), problem());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Buildyard coordinator",
            "version": "v1",
            "description": "Errors are application/problem+json. Bodies are JSON unless said otherwise. Their schemas \
                            are names only: the types are defined in pipelines/types/src/api.rs and worker.rs.",
            "license": { "name": "Apache-2.0 OR MIT", "identifier": "Apache-2.0 OR MIT" },
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "admin": { "type": "http", "scheme": "bearer", "description": "An administrator's token." },
                "worker": { "type": "http", "scheme": "bearer", "description": "A worker's credential." },
            },
        },
    })
}

fn operation(route: &Route, schemas: &mut Map<String, Value>) -> Value {
    let (status, kind) = route.gives;
    let mut operation = json!({
        "summary": route.summary,
        "parameters": parameters(route),
        "responses": {
            status.to_string(): answer(kind, schemas),
            "default": {
                "description": "What went wrong and what to do next.",
                "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } },
            },
        },
        "security": match route.who {
            Who::Anyone => json!([]),
            Who::Admin => json!([{ "admin": [] }]),
            Who::Worker => json!([{ "worker": [] }]),
        },
    });
    if let Some(name) = route.takes {
        operation["requestBody"] = json!({ "required": true, "content": { "application/json": { "schema": named(name, schemas) } } });
    }
    operation
}

fn parameters(route: &Route) -> Vec<Value> {
    let in_path = route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let in_path = in_path.map(|name| {
        let name = name.trim_start_matches('*');
        json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } })
    });
    let in_query =
        route.query.iter().map(|name| json!({ "name": name, "in": "query", "schema": { "type": "string" } }));
    in_path.chain(in_query).collect()
}

fn answer(kind: &str, schemas: &mut Map<String, Value>) -> Value {
    if kind.is_empty() {
        return json!({ "description": "Done." });
    }
    let mut content = Map::new();
    for one in kind.split([',', ' ']).filter(|one| !one.is_empty() && *one != "or") {
        if one.contains('/') {
            content.insert(one.to_owned(), json!({}));
        } else {
            content.insert("application/json".to_owned(), json!({ "schema": named(one, schemas) }));
        }
    }
    json!({ "description": "Success.", "content": content })
}

fn named(name: &str, schemas: &mut Map<String, Value>) -> Value {
    let (item, list) = match name.strip_suffix("[]") {
        Some(item) => (item, true),
        None => (name, false),
    };
    schemas.entry(item).or_insert_with(|| json!({ "type": "object" }));
    let reference = json!({ "$ref": format!("#/components/schemas/{item}") });
    if list { json!({ "type": "array", "items": reference }) } else { reference }
}

fn problem() -> Value {
    json!({
        "type": "object",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": { "type": "string", "description": "Stable code." },
            "title": { "type": "string" },
            "status": { "type": "integer" },
            "detail": { "type": "string" },
            "hint": { "type": "string" },
            "request_id": { "type": "string" },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Run with `BLESS=1` to write the file after a change of the table.
    #[test]
    fn the_checked_in_description_is_that_of_the_router() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(path, text()).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        assert!(kept == text(), "openapi.json is not what the router serves; run this test with BLESS=1");
    }

    #[test]
    fn no_route_is_there_twice_and_each_says_what_it_does() {
        let routes = all();
        let mut seen = std::collections::BTreeSet::new();
        for route in &routes {
            assert!(seen.insert((route.path, route.method.to_string())), "{} {}", route.method, route.path);
            assert!(route.summary.ends_with('.'), "{}", route.path);
        }
        assert!(routes.len() > 25);
    }
}
