//! Laws that hold for every story: the engine against a model that counts seconds.

#[test]
fn placeholder() {}
