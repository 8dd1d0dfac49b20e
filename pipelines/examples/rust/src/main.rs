fn greet(name: Option<&str>) -> String {
    format!("Hello, {}!", name.unwrap_or("world"))
}

fn main() {
    println!("{}", greet(std::env::args().nth(1).as_deref()));
}

#[cfg(test)]
mod tests {
    use super::greet;

    #[test]
    fn names_are_greeted() {
        assert_eq!(greet(Some("yard")), "Hello, yard!");
        assert_eq!(greet(None), "Hello, world!");
    }
}
