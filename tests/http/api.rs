//! The table of routes, held against the server and against its documentation.

use crate::house::House;
use rollcall::api::routes::{Need, ROUTES, Route};
use rollcall::config::Scopes;
use std::collections::BTreeSet;

/// A token with every scope.
const TOKEN: &str = "everything-everything";

fn guarded() -> House {
    House::with_tokens(1, Some(&[(TOKEN.to_owned(), Scopes::everything())]))
}

/// A path of this route that there is.
fn example(route: &Route) -> String {
    route.path.replace("{user}", "alice").replace("{file}", "main.js")
}

/// Those that every server has; the others need a setting.
fn always() -> impl Iterator<Item = &'static Route> {
    ROUTES.iter().filter(|route| route.need != Need::UserSig)
}

#[test]
fn every_route_is_served_and_needs_what_the_table_says() {
    let house = guarded();
    for route in always() {
        let (method, path) = (route.method.name(), example(route));
        let open = house.send(method, &path, b"").status;
        match route.need {
            Need::Nothing => assert_eq!(open, 200, "{path}"),
            _ => assert_eq!(open, 401, "{path}"),
        }
        let other = if method == "GET" { "POST" } else { "GET" };
        let is_other = Route::find(other, route.path).is_some();
        // What is not in the table is not served, and not even that is said without a token.
        if !is_other {
            assert_eq!(house.send(other, &path, b"").status, 401, "{other} {path}");
            house
                .token(TOKEN)
                .send(other, &path, b"")
                .error(405, "method_not_allowed");
        }
        let served = house.token(TOKEN).send(method, &path, b"");
        assert_ne!(served.status, 405, "{method} {path}");
        assert!(
            served.status != 404 || !served.body.contains("there is nothing at this path"),
            "{method} {path}: {}",
            served.body
        );
    }
}

/// The rows of the table of routes in the documentation: the routes of each with its scope.
fn documented() -> Vec<(String, String)> {
    let text = include_str!("../../docs/http.md");
    let rows = text
        .lines()
        .skip_while(|line| !line.starts_with("| route |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    rows.flat_map(|row| {
        let cells: Vec<&str> = row.split(" | ").collect();
        let routes: Vec<&str> = cells[0].split('`').skip(1).step_by(2).collect();
        // A form with its query is the same route.
        let bare = |route: &str| route.split('?').next().unwrap_or_default().to_owned();
        let scope = cells[1].to_owned();
        routes
            .into_iter()
            .map(move |route| (bare(route), scope.clone()))
            .collect::<Vec<_>>()
    })
    .collect()
}

#[test]
fn every_route_and_parameter_is_documented_and_nothing_else_is() {
    let expected: BTreeSet<(String, String)> = ROUTES
        .iter()
        .map(|route| {
            let scope = match route.need {
                Need::Nothing => "none",
                Need::Read => "read",
                Need::Follow => "read, or a ticket",
                Need::Publish => "publish",
                Need::Metrics => "metrics or read",
                Need::UserSig => "a signature",
            };
            let path = route.path.replace("{*command}", "…");
            (format!("{} {path}", route.method.name()), scope.to_owned())
        })
        .collect();
    let documented: BTreeSet<(String, String)> = documented().into_iter().collect();
    assert_eq!(documented, expected);
    let text = include_str!("../../docs/http.md");
    for parameter in ROUTES.iter().flat_map(|route| route.parameters) {
        let name = parameter.name;
        let forms = [format!("`{name}`"), format!("?{name}"), format!("&{name}=")];
        assert!(forms.iter().any(|form| text.contains(form.as_str())), "{name}");
    }
}
