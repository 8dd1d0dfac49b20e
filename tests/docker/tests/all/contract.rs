//! Docker against the contract that the fake is held to as well.

use buildyard_test_docker::Ground;

buildyard_worker::engine_contract!(Ground::find().await);
