//! What the fake holds, and how its calls change it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::super::{
    ContainerDetails, ContainerId, ContainerNetwork, ContainerSpec, ContainerState, ContainerSummary,
    EngineError, Exit, FileContent, Instance, NetworkInfo, NetworkSpec, WORKER_LABEL,
};
use super::{Call, CallKind, Fault, ScriptedFile, ScriptedImage};

/// More calls than this are not remembered; a test that makes them is broken.
const MAX_CALLS: usize = 100_000;
const MAX_LINKS: u32 = 40;

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) images: Vec<ScriptedImage>,
    pub(super) registry: Vec<ScriptedImage>,
    pub(super) containers: BTreeMap<ContainerId, Container>,
    pub(super) networks: Vec<NetworkInfo>,
    pub(super) faults: Vec<(CallKind, Fault)>,
    pub(super) calls: Vec<Call>,
    pub(super) away: bool,
    pub(super) pid: Option<u32>,
    pub(super) upper_dir: Option<PathBuf>,
    made: u64,
}

#[derive(Debug)]
pub(super) struct Container {
    pub(super) spec: ContainerSpec,
    pub(super) state: ContainerState,
    files: BTreeMap<String, ScriptedFile>,
}

pub(super) fn away(call: String) -> EngineError {
    let source = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "the scripted engine is away");
    EngineError::Unavailable { call, source: Box::new(source) }
}

fn conflict(call: String, message: &str) -> EngineError {
    EngineError::Conflict { call, message: message.to_owned() }
}

impl State {
    pub(super) fn called(&mut self, kind: CallKind, subject: &str) -> Option<Fault> {
        if self.calls.len() < MAX_CALLS {
            self.calls.push(Call { kind, subject: subject.to_owned() });
        }
        if self.away {
            return Some(Fault::Away);
        }
        let place = self.faults.iter().position(|(of, _)| *of == kind)?;
        Some(self.faults.remove(place).1)
    }

    pub(super) fn image(&self, name: &str) -> Result<&ScriptedImage, EngineError> {
        let named = |image: &&ScriptedImage| {
            image.info.engine_ref == name || image.info.names.iter().any(|n| n == name)
        };
        self.images.iter().find(named).ok_or_else(|| EngineError::ImageMissing { image: name.to_owned() })
    }

    pub(super) fn pull(&mut self, name: &str) -> Result<(), EngineError> {
        let offered = self.registry.iter().find(|image| image.info.names.iter().any(|n| n == name)).cloned();
        let unknown =
            || EngineError::ImageUnknown { image: name.to_owned(), message: "manifest unknown".to_owned() };
        let image = offered.ok_or_else(unknown)?;
        // The name moves; what it named before keeps its content without it.
        for held in &mut self.images {
            held.info.names.retain(|n| n != name);
        }
        self.images.push(image);
        Ok(())
    }

    /// By id, or by name as Docker does it.
    fn id_of(&self, id: &ContainerId) -> Result<ContainerId, EngineError> {
        let by_name = || self.containers.iter().find(|(_, found)| found.spec.name == id.0).map(|(id, _)| id);
        let found = self.containers.get_key_value(id).map(|(id, _)| id).or_else(by_name);
        found.cloned().ok_or_else(|| EngineError::NotFound { what: format!("container {id}") })
    }

    pub(super) fn find(&self, id: &ContainerId) -> Result<&Container, EngineError> {
        Ok(&self.containers[&self.id_of(id)?])
    }

    pub(super) fn find_mut(&mut self, id: &ContainerId) -> Result<&mut Container, EngineError> {
        let id = self.id_of(id)?;
        Ok(self.containers.get_mut(&id).expect("id_of answers with ids that exist"))
    }

    pub(super) fn runs(&self, id: &ContainerId) -> bool {
        self.find(id).is_ok_and(|container| matches!(container.state, ContainerState::Running { .. }))
    }

    pub(super) fn create(&mut self, spec: &ContainerSpec) -> Result<ContainerId, EngineError> {
        let call = format!("create container {}", spec.name);
        let files = self.image(&spec.image)?.files.clone();
        if self.containers.values().any(|container| container.spec.name == spec.name) {
            return Err(conflict(call, "the name is already in use"));
        }
        if let Some(missing) = spec.mounts.iter().find(|mount| !mount.source.exists()) {
            let message = format!("bind source path does not exist: {}", missing.source.display());
            return Err(EngineError::Refused { call, message });
        }
        self.made += 1;
        let id = ContainerId(format!("{:064x}", self.made));
        let container = Container { spec: spec.clone(), state: ContainerState::Created, files };
        self.containers.insert(id.clone(), container);
        Ok(id)
    }

    pub(super) fn start(&mut self, id: &ContainerId) -> Result<ContainerId, EngineError> {
        let id = self.id_of(id)?;
        if let ContainerNetwork::Named(name) = &self.containers[&id].spec.network
            && !self.networks.iter().any(|network| network.name == *name)
        {
            return Err(EngineError::NotFound { what: format!("network {name}") });
        }
        if let ContainerNetwork::Of(other) = &self.containers[&id].spec.network
            && !self.id_of(other).is_ok_and(|other| self.runs(&other))
        {
            let call = format!("start container {id}");
            return Err(conflict(call, "cannot join the network of a container that does not run"));
        }
        self.made += 1;
        // Far above any pid that Linux gives, so that a mix-up cannot hit a real process.
        let pid = self.pid.unwrap_or(1 << 30 | self.made as u32);
        self.find_mut(&id)?.state = ContainerState::Running { pid, started: None };
        Ok(id)
    }

    pub(super) fn end(&mut self, id: &ContainerId, code: i64, oom_killed: bool) {
        if !self.runs(id) {
            return;
        }
        if let Ok(container) = self.find_mut(id) {
            let exit = Exit { code, oom_killed, error: None, started: None, finished: None };
            container.state = ContainerState::Exited(exit);
        }
    }

    pub(super) fn kill(&mut self, id: &ContainerId) -> Result<(), EngineError> {
        let id = self.id_of(id)?;
        if !self.runs(&id) {
            return Err(conflict(format!("kill container {id}"), "it is not running"));
        }
        self.end(&id, 137, false);
        Ok(())
    }

    pub(super) fn remove(&mut self, id: &ContainerId) {
        if let Ok(id) = self.id_of(id) {
            self.containers.remove(&id);
        }
    }

    pub(super) fn details(&self, id: &ContainerId) -> Result<ContainerDetails, EngineError> {
        let id = self.id_of(id)?;
        let container = &self.containers[&id];
        Ok(ContainerDetails {
            name: container.spec.name.clone(),
            labels: container.spec.labels.clone(),
            state: container.state.clone(),
            upper_dir: self.upper_dir.clone(),
            other_dirs: Vec::new(),
            id,
        })
    }

    pub(super) fn list(&self, instance: &Instance) -> Vec<ContainerSummary> {
        let ours = |container: &Container| {
            container.spec.labels.get(WORKER_LABEL).is_some_and(|value| value == instance.as_str())
        };
        let of = self.containers.iter().filter(|(_, container)| ours(container));
        of.map(|(id, container)| ContainerSummary {
            id: id.clone(),
            name: container.spec.name.clone(),
            labels: container.spec.labels.clone(),
            running: matches!(container.state, ContainerState::Running { .. }),
        })
        .collect()
    }

    pub(super) fn read_file(
        &self,
        id: &ContainerId,
        path: &str,
        max_bytes: u64,
    ) -> Result<FileContent, EngineError> {
        let files = &self.find(id)?.files;
        let mut path = path.to_owned();
        for _ in 0..MAX_LINKS {
            match files.get(&path) {
                Some(ScriptedFile::Bytes(bytes)) if bytes.len() as u64 > max_bytes => {
                    return Ok(FileContent::TooLong);
                }
                Some(ScriptedFile::Bytes(bytes)) => return Ok(FileContent::Bytes(bytes.clone())),
                Some(ScriptedFile::Link(target)) if target.starts_with('/') => path = target.clone(),
                Some(ScriptedFile::Link(target)) => {
                    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
                    path = format!("{folder}/{target}");
                }
                None if files.keys().any(|file| file.starts_with(&format!("{path}/"))) => {
                    return Ok(FileContent::NotAFile);
                }
                None => return Ok(FileContent::Missing),
            }
        }
        Ok(FileContent::NotAFile)
    }

    pub(super) fn create_network(&mut self, spec: &NetworkSpec) -> Result<(), EngineError> {
        let call = format!("create network {}", spec.name);
        if self.networks.iter().any(|network| network.name == spec.name) {
            return Err(conflict(call, "the name is already in use"));
        }
        if self.networks.iter().any(|network| network.subnets.contains(&spec.subnet)) {
            return Err(conflict(call, "the pool overlaps with another one"));
        }
        self.made += 1;
        self.networks.push(NetworkInfo {
            id: format!("{:064x}", self.made),
            name: spec.name.clone(),
            subnets: vec![spec.subnet.clone()],
            bridge: Some(spec.bridge.clone()),
            labels: spec.labels.clone(),
        });
        Ok(())
    }

    pub(super) fn remove_network(&mut self, name: &str) -> Result<(), EngineError> {
        let joined = |container: &Container| {
            matches!(container.state, ContainerState::Running { .. })
                && container.spec.network == ContainerNetwork::Named(name.to_owned())
        };
        if self.containers.values().any(joined) {
            return Err(conflict(format!("remove network {name}"), "it has active endpoints"));
        }
        self.networks.retain(|network| network.name != name);
        Ok(())
    }
}
