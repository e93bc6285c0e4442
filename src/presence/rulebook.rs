//! A policy prepared for the fold.

use super::policy::{Platform, Policy};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PlatformId(u8);

/// A policy prepared for the fold: platforms by number, with the comparisons of kinds precomputed.
pub(super) struct Rulebook {
    policy: Policy,
    /// The platforms by number. A number stays valid, since a platform is never removed.
    platforms: Vec<PlatformRules>,
}

pub(super) struct PlatformRules {
    name: Box<str>,
    pub rules: Platform,
    /// The greatest number of logged-in devices of its kind.
    pub instances: u64,
    same_kind: u32,
    excluded: u32,
}

impl Rulebook {
    pub fn new(policy: Policy) -> Rulebook {
        let names = policy.platforms.keys().cloned().collect();
        Rulebook::with_names(policy, names)
    }

    fn with_names(policy: Policy, names: Vec<String>) -> Rulebook {
        let kinds: Vec<Option<&str>> = names
            .iter()
            .map(|name| policy.platforms.get(name).map(|other| &*other.kind))
            .collect();
        let numbers_where = |is: &dyn Fn(&str) -> bool| {
            let are = kinds.iter().map(|kind| kind.is_some_and(is));
            are.enumerate()
                .fold(0u32, |set, (number, is)| set | u32::from(is) << number)
        };
        let groups: Vec<u32> = match &policy.exclusive {
            Some(groups) => groups
                .iter()
                .map(|group| numbers_where(&|kind| group.iter().any(|of| of == kind)))
                .collect(),
            None => {
                let groups = policy.login.groups().iter();
                groups
                    .map(|group| numbers_where(&|kind| group.contains(&kind)))
                    .collect()
            }
        };
        let platforms = names
            .iter()
            .enumerate()
            .filter_map(|(number, name)| {
                let rules = policy.platforms.get(name)?;
                let same_kind = numbers_where(&|kind| kind == rules.kind);
                let its = groups.iter().filter(|group| *group >> number & 1 != 0);
                Some(PlatformRules {
                    name: name.as_str().into(),
                    rules: rules.clone(),
                    instances: policy.instances_of(&rules.kind),
                    same_kind,
                    // Platforms of a different kind that share an exclusive group with this one.
                    excluded: its.fold(0, |set, group| set | group) & !same_kind,
                })
            })
            .collect();
        Rulebook { policy, platforms }
    }

    /// Puts another policy in force. The error is a platform that the new policy lacks.
    pub fn replace(&mut self, policy: Policy) -> Result<(), String> {
        if let Some(name) = policy.lacks(&self.policy) {
            return Err(name);
        }
        let mut names: Vec<String> = self
            .platforms
            .iter()
            .map(|platform| platform.name.to_string())
            .collect();
        let new = policy
            .platforms
            .keys()
            .filter(|name| !self.policy.platforms.contains_key(*name));
        names.extend(new.cloned());
        *self = Rulebook::with_names(policy, names);
        Ok(())
    }

    pub fn find(&self, name: &str) -> Option<PlatformId> {
        let number = self.platforms.iter().position(|platform| &*platform.name == name)?;
        Some(PlatformId(number as u8))
    }

    pub fn name(&self, id: PlatformId) -> &str {
        &self.platforms[id.0 as usize].name
    }

    pub fn of(&self, id: PlatformId) -> &PlatformRules {
        &self.platforms[id.0 as usize]
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }
}

impl PlatformRules {
    pub fn is_of_same_kind(&self, other: PlatformId) -> bool {
        self.same_kind & (1 << other.0) != 0
    }

    pub fn excludes(&self, other: PlatformId) -> bool {
        self.excluded & (1 << other.0) != 0
    }
}
