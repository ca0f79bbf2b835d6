//! Every key that REX-Ray 0.3 to 0.12 read, and what becomes of it.

use super::Fate;
use super::Fate::{Ignored, Mapped, Tightened};

/// Folders and sections in which a key may stand instead of at the root, the nearest first. `*` is a name of the user's.
pub(super) const SCOPES: &[&str] = &[
    "rexray.modules.*.",
    "libstorage.server.services.*.",
    "libstorage.integration.",
    "libstorage.server.",
    "libstorage.client.",
    "libstorage.",
    "rexray.",
];

const SERVED: &str = "the libStorage API is not served: everything is on this node, and the sockets are root's";
const DEADLINES: &str = "every step has a deadline of its own";
const CSI: &str = "this version does not serve CSI";
const LOGGING: &str = "use --log-level, --log-format and --log-file";
const READS: &str = "reads are answered from memory, with their age, and what is mounted is the kernel's own word";

/// The keys that are no driver's: as REX-Ray's documentation spells them, and what becomes of each.
pub(super) const KEYS: &[(&str, Fate, &str)] = &[
    // Which driver.
    ("rexray.storageDrivers", Mapped, "the first is the driver of endpoint rexray"),
    ("rexray.service", Mapped, "the driver of the endpoint"),
    ("libstorage.service", Mapped, "the driver of the endpoint"),
    ("libstorage.storage.driver", Mapped, "the driver of the endpoint, where no service is named"),
    ("libstorage.server.services.*.driver", Mapped, "a driver of that name"),
    ("libstorage.driver", Mapped, "the driver of the endpoint, where no service is named"),
    ("libstorage.host", Ignored, "it is this machine: the daemon needs no server"),
    ("rexray.host", Ignored, "it is this machine: the daemon needs no server"),
    ("libstorage.embedded", Ignored, "there is no separate server"),
    ("libstorage.disabled", Ignored, "there is no separate server"),
    // Modules.
    ("rexray.modules.*.type", Mapped, "docker and csi: an endpoint"),
    ("rexray.modules.*.desc", Ignored, "a comment"),
    ("rexray.modules.*.host", Tightened, "the name of the endpoint; its socket is in --plugin-dir, root's alone, and never TCP"),
    ("rexray.modules.*.disabled", Mapped, "true: no such endpoint"),
    ("rexray.modules.*.spec", Ignored, "Docker finds the endpoint by its socket"),
    ("rexray.module.startTimeout", Ignored, DEADLINES),
    // What mounts and volumes are.
    ("integration.volume.operations.mount.preempt", Tightened, "true: if-dead, never from a node that lives; false: never"),
    ("integration.volume.operations.mount.path", Mapped, "volumes.path"),
    ("integration.volume.operations.mount.rootPath", Mapped, "rootPath of new volumes; those that exist are looked at one by one"),
    ("integration.volume.operations.mount.retryCount", Ignored, DEADLINES),
    ("integration.volume.operations.mount.retryWait", Ignored, DEADLINES),
    ("integration.volume.operations.unmount.ignoreUsedCount", Ignored, "holders are counted by name, and one without an ID counts once"),
    ("integration.volume.operations.path.cache.enabled", Ignored, READS),
    ("integration.volume.operations.path.cache.async", Ignored, READS),
    ("integration.volume.operations.path.cache", Ignored, READS),
    (
        "integration.volume.operations.create.disable",
        Tightened,
        "true: Create answers 'permission', where REX-Ray said yes and made nothing",
    ),
    (
        "integration.volume.operations.create.implicit",
        Ignored,
        "a plugin Mount never makes a volume; dvdcli's does unless --explicitcreate",
    ),
    ("integration.volume.operations.create.default.size", Mapped, "size of new volumes, in GiB"),
    ("integration.volume.operations.create.default.fsType", Mapped, "filesystem of new volumes"),
    ("integration.volume.operations.create.default.availabilityZone", Mapped, "a hint for new volumes"),
    ("integration.volume.operations.create.default.type", Mapped, "a hint for new volumes"),
    ("integration.volume.operations.create.default.IOPS", Mapped, "a hint for new volumes"),
    (
        "integration.volume.operations.remove.disable",
        Tightened,
        "true: Remove answers 'permission', where REX-Ray said yes and removed nothing",
    ),
    ("integration.volume.operations.remove.force", Ignored, "a volume that somebody holds is never removed"),
    ("linux.volume.filemode", Tightened, "mode of new volumes, set once when they are made, and never on what is there"),
    ("linux.volume.rootpath", Mapped, "rootPath of new volumes, where mount.rootPath says nothing"),
    // The same by their names before 0.4.
    ("volume.mount.preempt", Tightened, "true: if-dead, never from a node that lives; false: never"),
    ("volume.unmount.ignoreUsedCount", Ignored, "holders are counted by name, and one without an ID counts once"),
    ("volume.path.cache", Ignored, READS),
    ("volume.path.cache.enabled", Ignored, READS),
    ("volume.path.cache.async", Ignored, READS),
    ("volume.create.disable", Tightened, "true: Create answers 'permission', where REX-Ray said yes and made nothing"),
    ("volume.remove.disable", Tightened, "true: Remove answers 'permission', where REX-Ray said yes and removed nothing"),
    ("docker.size", Mapped, "size of new volumes, in GiB"),
    ("docker.fsType", Mapped, "filesystem of new volumes"),
    ("docker.volumeType", Mapped, "a hint for new volumes"),
    ("docker.iops", Mapped, "a hint for new volumes"),
    ("docker.availabilityZone", Mapped, "a hint for new volumes"),
    ("docker.mountDirPath", Mapped, "volumes.path"),
    ("rexray.docker.mount.path", Ignored, "REX-Ray's bridge to CSI alone used it"),
    ("rexray.osDrivers", Ignored, "the system is Linux"),
    ("rexray.volumeDrivers", Ignored, "the plugin API is Docker's"),
    ("libstorage.os.driver", Ignored, "the system is Linux"),
    ("libstorage.integration.driver", Ignored, "the system is Linux"),
    // The daemon itself.
    ("rexray.logLevel", Ignored, LOGGING),
    ("libstorage.logging.level", Ignored, LOGGING),
    ("libstorage.logging.stdout", Ignored, LOGGING),
    ("libstorage.logging.stderr", Ignored, LOGGING),
    ("libstorage.logging.httpRequests", Ignored, LOGGING),
    ("libstorage.logging.httpResponses", Ignored, LOGGING),
    ("rexray.token.key", Ignored, "only 'rexray token' uses it"),
    ("rexray.token.alg", Ignored, "only 'rexray token' uses it"),
    ("rexray.token.exp", Ignored, "only 'rexray token' uses it"),
    ("rexray.csi.nfs.volumes", Ignored, CSI),
    ("csi.endpoint", Mapped, "the name of the endpoint"),
    ("csi.driver", Ignored, CSI),
    ("csi.goplugins", Ignored, CSI),
    ("csi.nodocker", Ignored, CSI),
    ("csi.libstorage.timeout", Ignored, CSI),
    ("libstorage.client.type", Ignored, SERVED),
    ("libstorage.client.cache.instanceID", Ignored, "a node's name is asked for once, at start"),
    ("libstorage.client.auth.token", Ignored, SERVED),
    ("libstorage.client.tls", Ignored, SERVED),
    ("libstorage.http.disableKeepAlive", Ignored, SERVED),
    ("libstorage.http.writeTimeout", Ignored, SERVED),
    ("libstorage.http.readTimeout", Ignored, SERVED),
    ("libstorage.executor.path", Ignored, "there are no executors"),
    ("libstorage.executor.disableDownload", Ignored, "there are no executors"),
    ("libstorage.device.attachTimeout", Ignored, DEADLINES),
    ("libstorage.device.scanType", Ignored, "devices are found by what they are, not by a scan"),
    ("libstorage.schema.responseValidationEnabled", Ignored, SERVED),
    ("libstorage.server.autoEndpointMode", Ignored, SERVED),
    ("libstorage.server.endpoints.*.address", Ignored, SERVED),
    ("libstorage.server.endpoints.*.tls", Ignored, SERVED),
    ("libstorage.server.tasks.exeTimeout", Ignored, DEADLINES),
    ("libstorage.server.tasks.logTimeout", Ignored, DEADLINES),
    ("libstorage.server.parseRequestOpts", Ignored, SERVED),
    ("auth.key", Ignored, SERVED),
    ("auth.alg", Ignored, SERVED),
    ("auth.allow", Ignored, SERVED),
    ("auth.deny", Ignored, SERVED),
    ("auth.disabled", Ignored, SERVED),
    ("tls", Ignored, SERVED),
    ("tls.certFile", Ignored, SERVED),
    ("tls.keyFile", Ignored, SERVED),
    ("tls.trustedCertsFile", Ignored, SERVED),
    ("tls.knownHosts", Ignored, SERVED),
    ("tls.serverName", Ignored, SERVED),
    ("tls.disabled", Ignored, SERVED),
    ("tls.insecure", Ignored, SERVED),
    ("tls.verifyPeers", Ignored, SERVED),
    ("tls.clientCertRequired", Ignored, SERVED),
    // Ours, for a REX-Ray configuration on the driver `local`.
    ("local.pool", Mapped, "the pool of the driver"),
    ("vfs.root", Mapped, "the folder of the driver"),
    ("rbd.defaultPool", Mapped, "the pool of the driver"),
    ("rbd.cephArgs", Mapped, "of them --id, --name, --conf, --keyring and --cluster: user, keyring and conf of the driver"),
    ("rbd.testModule", Ignored, "what this kernel can do is found out when a volume is attached"),
];

/// Storage drivers: the names that REX-Ray knew each by, what a type of ours has its platform, and its keys.
pub(super) const DRIVERS: &[(&[&str], &str, &[&str])] = &[
    (&["local"], "local", &[]),
    (&["vfs"], "vfs", &[]),
    (
        &["virtualbox"],
        "virtualbox",
        &["username", "password", "endpoint", "volumePath", "localMachineNameOrId", "tls", "controllerName", "diskIDPath", "scsiHostPath"],
    ),
    (
        &["ebs", "ec2", "aws"],
        "ebs",
        &[
            "accessKey",
            "secretKey",
            "region",
            "endpoint",
            "maxRetries",
            "tag",
            "rexrayTag",
            "kmsKeyID",
            "useLargeDeviceRange",
            "statusMaxAttempts",
            "statusInitialDelay",
            "statusTimeout",
            "nvmeBinPath",
        ],
    ),
    (&["rbd"], "ceph", &[]),
    (
        &["efs"],
        "efs",
        &[
            "accessKey",
            "secretKey",
            "region",
            "securityGroups",
            "endpoint",
            "endpointFormat",
            "maxRetries",
            "tag",
            "disableSessionCache",
            "statusMaxAttempts",
            "statusInitialDelay",
            "statusTimeout",
        ],
    ),
    (
        &["s3fs"],
        "s3fs",
        &["accessKey", "secretKey", "region", "cmd", "options", "hostName", "tag", "maxRetries", "disablePathStyle", "endpoint"],
    ),
    (
        &["gcepd", "gce"],
        "gcepd",
        &["keyfile", "zone", "defaultDiskType", "tag", "statusMaxAttempts", "statusInitialDelay", "statusTimeout", "convertUnderscores"],
    ),
    (
        &["dobs", "digitalocean"],
        "dobs",
        &["token", "region", "statusMaxAttempts", "statusInitialDelay", "statusTimeout", "convertUnderscores"],
    ),
    (
        &["cinder", "openstack"],
        "cinder",
        &[
            "authURL",
            "userID",
            "userName",
            "password",
            "tokenID",
            "tenantID",
            "tenantName",
            "domainID",
            "domainName",
            "regionName",
            "availabilityZoneName",
            "trustID",
            "attachTimeout",
            "deleteTimeout",
            "createTimeout",
            "snapshotTimeout",
            "CACert",
            "insecure",
        ],
    ),
    (
        &["azureud", "azure"],
        "azureud",
        &[
            "subscriptionID",
            "resourceGroup",
            "tenantID",
            "storageAccount",
            "storageAccessKey",
            "container",
            "clientID",
            "clientSecret",
            "certPath",
            "useHTTPS",
            "tag",
        ],
    ),
    (
        &["scaleio"],
        "scaleio",
        &[
            "guid",
            "drv_cfg",
            "drvCfg",
            "endpoint",
            "apiVersion",
            "insecure",
            "useCerts",
            "userID",
            "userName",
            "password",
            "systemID",
            "systemName",
            "protectionDomainID",
            "protectionDomainName",
            "storagePoolID",
            "storagePoolName",
            "thinOrThick",
            "version",
        ],
    ),
    (
        &["isilon"],
        "isilon",
        &["endpoint", "insecure", "userName", "group", "password", "volumePath", "nfsHost", "dataSubnet", "quotas", "sharedMounts"],
    ),
    (&["fittedcloud"], "fittedcloud", &[]),
    (&["rackspace"], "rackspace", &["authURL", "userID", "userName", "password", "tenantID", "tenantName", "domainID", "domainName"]),
    (&["xtremio"], "xtremio", &["endpoint", "insecure", "userName", "password", "deviceMapper", "multipath", "remoteManagement"]),
    (
        &["vmax"],
        "vmax",
        &[
            "smisHost",
            "smisPort",
            "insecure",
            "userName",
            "password",
            "sid",
            "volumePrefix",
            "storageGroup",
            "vmhHost",
            "vmhUserName",
            "vmhPassword",
        ],
    ),
    (&["csi-nfs", "csi-blockdevices", "csi-vfs"], "csi", &[]),
];

/// The type of ours for a name of REX-Ray's, in any letter case.
pub(super) fn kind_of(name: &str) -> Option<&'static str> {
    DRIVERS.iter().find(|(names, ..)| names.iter().any(|n| n.eq_ignore_ascii_case(name))).map(|(_, kind, _)| *kind)
}

/// What is known of a key, by its whole path in lower case: the spelling, its fate and why.
pub(super) fn find(path: &str) -> Option<(String, Fate, String)> {
    if let Some((name, fate, why)) = KEYS.iter().find(|(name, ..)| fits(name, path)) {
        return Some(((*name).to_owned(), *fate, (*why).to_owned()));
    }
    if let Some((block, key)) = path.split_once('.')
        && let Some((_, kind, keys)) = DRIVERS.iter().find(|(names, ..)| names.contains(&block))
        && let Some(name) = keys.iter().find(|name| name.eq_ignore_ascii_case(key))
    {
        return Some((format!("{block}.{name}"), Ignored, format!("this build has no {kind} driver")));
    }
    SCOPES.iter().find_map(|scope| find(strip(scope, path)?))
}

/// The keys that no scope is before, for the nearest to a wrong one.
pub(super) fn all() -> impl Iterator<Item = String> {
    let plain = KEYS.iter().map(|(name, ..)| (*name).to_owned());
    plain.chain(
        DRIVERS
            .iter()
            .flat_map(|(names, _, keys)| names.iter().flat_map(move |block| keys.iter().map(move |key| format!("{block}.{key}")))),
    )
}

/// Whether a path is the pattern's, name by name.
fn fits(pattern: &str, path: &str) -> bool {
    let mut names = path.split('.');
    pattern.split('.').all(|part| names.next().is_some_and(|name| part == "*" || part.eq_ignore_ascii_case(name))) && names.next().is_none()
}

/// What is left of a path behind a scope.
pub(super) fn strip<'p>(scope: &str, path: &'p str) -> Option<&'p str> {
    let mut rest = path;
    for part in scope.trim_end_matches('.').split('.') {
        let (name, behind) = rest.split_once('.')?;
        if part != "*" && !part.eq_ignore_ascii_case(name) {
            return None;
        }
        rest = behind;
    }
    Some(rest)
}

/// Whether a value must not be shown.
pub(super) fn is_secret(path: &str) -> bool {
    let last = path.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    ["accesskey", "secretkey", "password", "vmhpassword", "token", "tokenid", "clientsecret", "storageaccesskey", "key", "cephargs"]
        .contains(&last.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_wherever_it_may_stand_and_in_any_letter_case() {
        for path in [
            "rexray.volume.mount.preempt",
            "volume.mount.preempt",
            "integration.volume.operations.mount.preempt",
            "libstorage.integration.volume.operations.mount.preempt",
            "libstorage.server.services.ebs-00.integration.volume.operations.mount.preempt",
            "rexray.modules.slow.integration.volume.operations.mount.preempt",
            "virtualbox.controllername",
            "libstorage.server.services.vb.virtualbox.volumepath",
            "libstorage.server.auth.key",
            "libstorage.tls.certfile",
        ] {
            assert!(find(path).is_some(), "{path}");
        }
        assert!(find("virtualbox.controler").is_none() && find("rexray").is_none());
    }

    #[test]
    fn no_key_is_told_of_twice() {
        let mut names: Vec<String> = all().map(|name| name.to_lowercase()).collect();
        let before = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), before);
    }
}
