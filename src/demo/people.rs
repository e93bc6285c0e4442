//! The people of the simulated world, with readable names and their devices.
//!
//! The same person has the same devices in every run, so that a restarted server meets users that it already knows.

use crate::random::Random;

/// A kind of client. Its name is that of a platform of the default policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Platform {
    Android,
    Iphone,
    Mac,
    Windows,
    Web,
    MiniProgram,
}

impl Platform {
    pub const ALL: [Platform; 6] = [
        Platform::Android,
        Platform::Iphone,
        Platform::Mac,
        Platform::Windows,
        Platform::Web,
        Platform::MiniProgram,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Platform::Android => "android",
            Platform::Iphone => "iphone",
            Platform::Mac => "mac",
            Platform::Windows => "windows",
            Platform::Web => "web",
            Platform::MiniProgram => "mini_program",
        }
    }

    /// What a client reports about itself when it connects.
    pub fn client(self) -> &'static str {
        match self {
            Platform::Android => "app 5.2, Android 16",
            Platform::Iphone => "app 5.2, iOS 26",
            Platform::Mac => "app 5.1, macOS 15",
            Platform::Windows => "app 5.1, Windows 11",
            Platform::Web => "web 5.2, Firefox 140",
            Platform::MiniProgram => "mini program 2.9",
        }
    }
}

/// One app installation, or a browser, whose tabs are devices of their own.
pub struct DemoDevice {
    pub platform: Platform,
    id: String,
    /// How many tabs a browser has opened.
    tabs: u32,
}

impl DemoDevice {
    pub fn id(&self) -> String {
        match self.platform {
            Platform::Web => format!("{}-tab-{}", self.id, self.tabs),
            _ => self.id.clone(),
        }
    }

    pub fn open_tab(&mut self) {
        self.tabs += 1;
    }
}

const NAMES: [&str; 40] = [
    "ada", "amir", "anna", "ben", "bo", "carla", "chen", "dina", "eli", "emma", "femi", "finn", "gita", "hana", "hugo",
    "ida", "ines", "ivan", "jun", "kai", "lea", "leo", "lin", "mara", "mei", "mia", "milo", "nia", "noa", "omar",
    "paul", "pia", "ravi", "rosa", "sam", "tara", "theo", "uma", "yara", "zoe",
];

/// Returns the name of a person. No other person has the same.
pub fn name(number: u32) -> String {
    format!("{}-{number}", NAMES[number as usize % NAMES.len()])
}

/// Returns a person's devices: always a phone, the others at random.
pub fn devices(number: u32) -> Vec<DemoDevice> {
    let mut random = Random(u64::from(number));
    let phone = |random: &mut Random| random.choose(&[(60, Platform::Android), (40, Platform::Iphone)]);
    let mut platforms = vec![phone(&mut random)];
    if random.percent(20) {
        platforms.push(phone(&mut random));
    }
    if random.percent(50) {
        platforms.push(random.choose(&[(40, Platform::Mac), (60, Platform::Windows)]));
    }
    if random.percent(55) {
        platforms.push(Platform::Web);
    }
    if random.percent(35) {
        platforms.push(Platform::MiniProgram);
    }
    let device = |(nth, platform): (usize, Platform)| DemoDevice {
        platform,
        // The index makes the id differ from the person's other ids, whatever the random number is.
        id: format!("{}-{nth}{:03x}", platform.name(), random.below(0x1000)),
        tabs: 0,
    };
    platforms.into_iter().enumerate().map(device).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn nobody_shares_a_name_and_nobody_s_devices_an_id() {
        let names: HashSet<String> = (0..1_000).map(name).collect();
        assert_eq!(names.len(), 1_000);
        assert_eq!(name(25), "mia-25");
        for number in 0..1_000 {
            let devices = devices(number);
            let ids: HashSet<String> = devices.iter().map(DemoDevice::id).collect();
            assert_eq!(ids.len(), devices.len());
        }
    }
}
